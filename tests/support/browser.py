"""Controls a headless chromium for the tests of the comparison page."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --window-size=1280,1000"
)


def start(profile: Path) -> webdriver.Chrome:
    """Start a browser with this profile folder; skip the test if no browser is installed."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not chromium or not driver:
        pytest.skip("no chromium or chromedriver here: apt-get install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in [*FLAGS.split(), f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=Service(driver))  # given, so that selenium downloads nothing
    browser.set_script_timeout(60)
    return browser


class Page:
    """Controls the page in the browser, and reads from plotly what it has drawn."""

    def __init__(self, browser: webdriver.Chrome, file: Path) -> None:
        self.browser = browser
        for log in ("browser", "performance"):
            browser.get_log(log)
        if browser.current_url != file.as_uri():
            browser.get(file.as_uri())

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def settle(self) -> None:
        """Wait until the page is drawn after a change."""
        self.browser.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")

    def choose(self, control: str, value: str | int) -> None:
        self.run(
            "const control = document.getElementById(arguments[0]); control.value = arguments[1];"
            "for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind));",
            control,
            value,
        )
        self.settle()

    def click(self, selector: str) -> None:
        self.run("document.querySelector(arguments[0]).click()", selector)
        self.settle()

    def curves(self) -> dict[str, dict[str, Any]]:
        """Return the drawn traces by name: `run0`, `group0`, `band0`, `faint0`."""
        drawn = self.run(
            "return document.getElementById('curves').data.map(({name, x, y, meta, line}) => "
            "({name, x: Array.from(x), y: Array.from(y), text: meta, line}))"
        )
        return {trace["name"]: trace for trace in drawn}

    def axis(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = self.run(
            "const {type, range, autorange, title} = document.getElementById('curves').layout[arguments[0]];"
            "return {type, range: Array.from(range), whole: autorange !== false, title: title.text}",
            name,
        )
        return found

    def text(self, selector: str) -> str:
        return str(self.run("return document.querySelector(arguments[0]).textContent", selector))

    def complaints(self) -> list[str]:
        return [str(line["message"]) for line in self.browser.get_log("browser")]

    def requests(self) -> list[str]:
        """Return the URLs requested since the page was opened, without those inside the browser."""
        events = [json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance")]
        urls = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
        return [url for url in urls if not url.startswith(("data:", "chrome:"))]

    def reset(self) -> None:
        """Reset all controls, which is faster than loading the page again."""
        self.run(
            "for (const id of ['metric', 'x', 'color', 'seeds']) document.getElementById(id).selectedIndex = 0;"
            "for (const id of ['logx', 'logy', 'whole']) document.getElementById(id).checked = false;"
            "document.getElementById('smooth').value = 0; document.getElementById('filter').value = '';"
            "for (const control of document.querySelectorAll('.controls select, .controls input'))"
            "  for (const kind of ['input', 'change']) control.dispatchEvent(new Event(kind));"
            "document.getElementById('config').close(); document.getElementById('all').click();"
        )
        self.settle()
