"""The page works in a real browser: it draws the curves, loads nothing, and never executes texts of runs."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from support.browser import Page, start
from support.command_line import Cli
from support.synthetic_runs import write_run, write_sweep

from lmtrain.comparison.output.page import as_html
from lmtrain.comparison.output.page_data import thin_curve
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.runs import load_runs
from lmtrain.terminal.units import counted

pytestmark = pytest.mark.slow  # the tests open the page in a browser

HOSTILE = "</script><script>window.hacked=1</script><img src=x onerror='window.hacked=1'>${window.hacked=1}%{x}"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    browser = start(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.quit()


def page_of(folder: Path) -> Path:
    file = folder.with_suffix(".html")
    file.write_text(as_html(compare(load_runs([folder]))), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a page of two learning rates with three seeds each."""
    folder = tmp_path_factory.mktemp("few") / "runs"
    for job, (lr, seed) in enumerate((lr, seed) for lr in (1e-3, 3e-3) for seed in (1, 2, 3)):
        loss = 3 + (lr == 1e-3) * 0.2 + 0.01 * seed
        write_run(folder / str(job), {"optimizer.lr": lr, "seed": seed}, final_loss=loss, eval_interval=5)
    (folder / "0" / "sample.txt").write_text("def f(x):\n    return x\n")
    return page_of(folder)


@pytest.fixture
def page(browser: webdriver.Chrome, few: Path) -> Page:
    page = Page(browser, few)
    page.reset()
    return page


def test_the_page_needs_nothing_but_its_file(browser: webdriver.Chrome, few: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "page.html"
    elsewhere.write_bytes(few.read_bytes())
    page = Page(browser, elsewhere)
    assert sorted(page.curves()) == [f"run{number}" for number in range(6)]
    assert page.complaints() == []
    assert page.requests() == [elsewhere.as_uri()]
    assert page.run("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    # plotly.js can upload charts, so the page must have only these buttons.
    titles = page.run("return [...document.querySelectorAll('.modebar-btn')].map(button => button.dataset.title)")
    assert titles == ["Download plot as a PNG", "Zoom", "Pan", "Zoom in", "Zoom out", "Reset axes"]
    assert "better than" in page.text("#sentences")
    assert page.text("#groups thead") == "settingseedsmean ± 95%SDvs bestp"
    assert page.run("return document.querySelectorAll('#groups tbody tr').length") == 2
    assert "def f(x):\n    return x" in page.text("#samples")


def test_the_policy_refuses_the_network_and_scripts_from_elsewhere(
    browser: webdriver.Chrome, few: Path, tmp_path: Path
) -> None:
    (tmp_path / "page.html").write_bytes(few.read_bytes())
    page = Page(browser, tmp_path / "page.html")
    page.run(
        "window.outcome = []; fetch('http://127.0.0.1:9/').catch(() => window.outcome.push('refused'));"
        "const made = document.createElement('script'); made.textContent = 'window.outcome.push(1)';"
        "document.body.append(made); document.body.insertAdjacentHTML('beforeend', '<img src=\"http://127.0.0.1:9/x\">');"
    )
    wait = WebDriverWait(browser, 30)
    assert wait.until(lambda _: page.run("return window.outcome")) == ["refused"]
    complaints: list[str] = []
    wait.until(lambda _: complaints.extend(page.complaints()) or len(complaints) >= 3)
    assert all("Content Security Policy" in line for line in complaints)


def test_axis_metric_and_scale_can_be_chosen(page: Page) -> None:
    steps = page.curves()["run0"]
    assert page.axis("xaxis") == {"type": "linear", "range": [5, 200], "whole": True, "title": "optimizer steps"}
    assert steps["x"][-1] == 200
    assert steps["y"][-1] == pytest.approx(3.21)
    for axis, last in {"tokens": 200 * 1024, "flops": 200 * 1024 * 6e6, "seconds": 100}.items():
        page.choose("x", axis)
        assert page.curves()["run0"]["x"][-1] == pytest.approx(last)
    assert page.axis("xaxis")["title"] == "time (seconds)"
    page.choose("metric", "train/loss")
    assert page.curves()["run0"]["y"][-1] == pytest.approx(3.16)
    assert len(page.curves()["run0"]["y"]) == 200
    page.click("#logx")
    page.click("#logy")
    assert page.axis("xaxis")["type"] == page.axis("yaxis")["type"] == "log"


def test_the_steep_first_steps_are_cut_off_until_the_whole_range_is_chosen(page: Page) -> None:
    page.choose("metric", "train/loss")
    low, high = page.axis("yaxis")["range"]
    first = max(curve["y"][0] for curve in page.curves().values())
    assert low < 3 < 3.5 < high < first - 0.5
    assert "cut off" in page.text("#note")
    page.click("#whole")
    assert page.axis("yaxis")["whole"]
    assert page.axis("yaxis")["range"][1] > first
    assert "cut off" not in page.text("#note")


def test_smoothing_is_a_debiased_exponential_mean(page: Page) -> None:
    page.choose("metric", "train/loss")
    raw = page.curves()["run0"]
    page.choose("smooth", 5)
    drawn = page.curves()
    weights = np.exp(-(raw["x"][-1] - np.array(raw["x"])) / (0.05 * 200))
    assert drawn["run0"]["y"][-1] == pytest.approx(np.average(raw["y"], weights=weights))
    assert drawn["run0"]["y"][0] == pytest.approx(raw["y"][0])
    behind = [value for value in drawn["faint0"]["y"] if value is not None]
    assert behind[:200] == raw["y"]


def test_replicates_are_drawn_as_their_mean_with_a_band(page: Page) -> None:
    runs = page.curves()
    values = np.array([runs[f"run{number}"]["y"] for number in range(3)])  # (seeds, points)
    page.choose("seeds", "interval")
    drawn = page.curves()
    assert sorted(drawn) == ["band0", "band1", "group0", "group1"]
    assert drawn["group0"]["y"] == pytest.approx(values.mean(0))
    half = stats.t.ppf(0.975, 2) * values[:, -1].std(ddof=1) / np.sqrt(3)
    count = values.shape[1]
    assert drawn["band0"]["y"][count - 1] == pytest.approx(values[:, -1].mean() + half)
    assert drawn["group0"]["text"] == "lr=0.001 (3 seeds)"
    page.choose("seeds", "range")
    assert page.curves()["band0"]["y"][count - 1] == pytest.approx(values[:, -1].max())


def test_means_have_only_runs_that_count_and_each_unit_once(browser: webdriver.Chrome, tmp_path: Path) -> None:
    for seed, loss in ((1, 3.0), (2, 3.2), (3, 3.4)):
        write_run(tmp_path / "runs" / f"{seed}", {"seed": seed}, final_loss=loss)
    write_run(tmp_path / "runs" / "again", {"seed": 3, "name": "again"}, final_loss=3.4)
    write_run(tmp_path / "runs" / "diverged", {"seed": 4}, final_loss=99.0, status="diverged")
    parent = tmp_path / "runs" / "1"
    origin = {"forked_from": {"run": str(parent), "run_id": "1", "step": 100}}
    for seed in (5, 6):
        changes = {"seed": seed, "fork": str(parent), "step": 100}
        write_run(tmp_path / "runs" / f"f{seed}", changes, first_step=100, final_loss=2.5, environment=origin)
    comparison = compare(load_runs([tmp_path / "runs"]))
    page = Page(browser, page_of(tmp_path / "runs"))
    page.choose("seeds", "interval")
    drawn = {curve["text"]: curve["y"][-1] for name, curve in page.curves().items() if name.startswith("group")}
    said = {
        f"{group.label} ({counted(len(group.values), 'seed')})": group.mean for group in comparison.conclusions.groups
    }
    assert drawn == pytest.approx(said)
    assert sorted(said.values()) == pytest.approx([2.5, 3.2])
    assert "Not in the means: 1 run without a value of val/loss at step 200." in page.text("#note")
    assert page.complaints() == []


def test_runs_are_chosen_filtered_and_sorted(page: Page) -> None:
    page.click("#runs tbody tr:first-child input")  # the best run, as the table is sorted
    drawn = page.curves()
    assert len(drawn) == 5
    assert not any(curve["text"] == "lr=0.003 seed=1" for curve in drawn.values())
    page.choose("filter", "lr=0.003")
    assert [curve["text"] for curve in page.curves().values()] == ["lr=0.003 seed=2", "lr=0.003 seed=3"]
    assert page.text("#shown") == "2 of 6 shown"
    page.choose("filter", "")
    page.click("#none")
    assert page.curves() == {}
    assert page.text("#note") == "No run is selected."
    page.click("#all")
    assert len(page.curves()) == 6
    page.run("[...document.querySelectorAll('#runs thead button')].find(b => b.textContent === 'seed').click()")
    assert page.text("#runs tbody tr:first-child").find("seed=1") >= 0
    assert page.run("return document.querySelector('#runs th[aria-sort=ascending]').textContent") == "seed"


def test_the_pointer_over_a_curve_shows_its_run_and_values(page: Page) -> None:
    plot = page.browser.find_element("css selector", "#curves .nsewdrag")
    page.run("arguments[0].scrollIntoView({block: 'center'})", plot)
    curve = page.curves()["run1"]
    axes = "const {xaxis, yaxis} = document.getElementById('curves')._fullLayout;"
    x, y = page.run(f"{axes} return [xaxis.d2p(arguments[0]), yaxis.d2p(arguments[1])]", curve["x"][20], curve["y"][20])
    size = plot.size
    offset = round(x - size["width"] / 2), round(y - size["height"] / 2)
    ActionChains(page.browser).move_to_element_with_offset(plot, *offset).perform()
    shown = WebDriverWait(page.browser, 30).until(lambda _: page.text("#curves .hoverlayer"))
    assert shown == f"{curve['text']}val/loss {curve['y'][20]:.5g}step 105"
    assert page.text("#runs tr.hot").startswith(curve["text"])


def test_a_row_highlights_its_curve_and_its_name_opens_the_config(page: Page) -> None:
    row = page.browser.find_element("css selector", "#runs tbody tr:nth-child(2)")
    ActionChains(page.browser).move_to_element(row).perform()
    hot = "return [...document.querySelectorAll('#curves g.trace.hot')].map(group => group.__data__[0].trace.name)"
    (name,) = page.run(hot)
    assert page.curves()[name]["text"] in row.text
    page.browser.find_element("css selector", "#runs tbody tr:nth-child(2) .name").send_keys(Keys.ENTER)
    assert "optimizer.lr" in page.text("#config tr.differs + tr.differs")
    assert "trainer.max_steps" in page.text("#config-table")


def test_every_control_can_be_reached_and_has_a_name(page: Page) -> None:
    unnamed = page.run(
        "return [...document.querySelectorAll('select, input, main button')].filter(control => "
        "!(control.labels && control.labels.length) && !control.textContent.trim() && !control.ariaLabel).length"
    )
    assert unnamed == 0


def test_curves_are_coloured_by_run_group_or_setting(page: Page) -> None:
    assert len({curve["line"]["color"] for curve in page.curves().values()}) == 6
    for setting in ("group", "optimizer.lr"):
        page.choose("color", setting)
        colors = [curve["line"]["color"] for _, curve in sorted(page.curves().items())]
        assert len(set(colors)) == 2
        assert colors[0] == colors[1] == colors[2]
    assert page.text("#legend") == "lr0.0010.003"


def test_the_page_fits_a_narrow_screen_and_has_a_dark_theme(page: Page) -> None:
    light = page.run("return getComputedStyle(document.body).backgroundColor")
    media = {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    size = {"width": 390, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    try:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        page.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        page.settle()
        assert page.run("return getComputedStyle(document.body).backgroundColor") != light
        # The drawing adapts to the window's size after a moment.
        width = "return document.documentElement.scrollWidth"
        WebDriverWait(page.browser, 10).until(lambda _: page.run(width) <= 390)
    finally:
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_texts_of_runs_are_never_executed(browser: webdriver.Chrome, tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    for seed in (1, 2, 3):
        changes = {"seed": seed, "data.note": f"{HOSTILE}{seed}", f"model.{HOSTILE}": HOSTILE}
        run = write_run(folder / f"<b onclick=1>{seed}", changes, steps=20, eval_interval=10)
        (run / "sample.txt").write_text(HOSTILE)
        lines = [json.loads(line) | {HOSTILE: seed, "__proto__": seed} for line in (run / "metrics.jsonl").open()]
        (run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        environment = json.loads((run / "environment.json").read_text())
        forked = environment | {"forked_from": {"run": HOSTILE, "run_id": HOSTILE, "step": 1}}
        (run / "environment.json").write_text(json.dumps(forked))
    file = page_of(folder)
    assert HOSTILE not in file.read_text(encoding="utf-8")
    page = Page(browser, file)
    page.choose("metric", HOSTILE)
    page.choose("color", "data.note")
    page.choose("seeds", "range")
    page.click("#runs .name")
    assert page.text("#samples pre") == HOSTILE
    assert HOSTILE in page.text("#lineage")
    assert page.axis("yaxis")["title"].startswith("&lt;/script&gt;")
    shown = page.run("return document.querySelector('#curves .ytitle').textContent")
    assert shown.startswith("</script><script>")
    assert page.run("return window.hacked") is None
    assert page.run("return document.querySelectorAll('#runs b, #lineage script, img, figure script').length") == 0
    assert page.complaints() == []


def test_two_hundred_runs_are_drawn_and_selected_quickly(browser: webdriver.Chrome, tmp_path: Path) -> None:
    file = page_of(write_sweep(tmp_path / "runs", 200, steps=500, log_interval=2))
    assert file.stat().st_size < 15e6
    began = time.monotonic()
    page = Page(browser, file)
    assert len(page.run("return document.querySelectorAll('#curves g.trace')")) == 200
    assert time.monotonic() - began < 60  # about 3 s on an idle machine
    began = time.monotonic()
    page.choose("metric", "train/loss")
    assert 150 < max(len(curve["x"]) for curve in page.curves().values()) <= 200  # of 250
    page.choose("filter", "seed=3")
    assert len(page.curves()) == 40
    assert time.monotonic() - began < 30  # half a second each
    # Drag a box over the best end of the last axis.
    plot = page.browser.find_element("css selector", "#parallel .nsewdrag")
    page.run("arguments[0].scrollIntoView({block: 'center'})", plot)
    page.choose("filter", "")
    width, height = plot.size["width"], plot.size["height"]
    axes = len(page.run("return document.getElementById('parallel').layout.shapes"))
    x = round(width * ((axes - 1 + 0.45) / (axes - 1 + 0.9) - 0.5))
    actions = ActionChains(page.browser).move_to_element_with_offset(plot, x - 20, round(height * 0.25))
    actions.click_and_hold().move_by_offset(40, round(height * 0.24)).release().perform()
    page.settle()
    kept = len(page.curves())
    assert 0 < kept < 150
    assert page.text("#shown") == f"{kept} of 200 shown"
    page.click("#unbrush")
    assert len(page.curves()) == 200
    assert page.complaints() == []


def test_a_run_without_metrics_has_a_page(browser: webdriver.Chrome, tmp_path: Path) -> None:
    write_run(tmp_path / "runs" / "one", status=None, steps=0)
    page = Page(browser, page_of(tmp_path / "runs"))
    assert "unfinished" in page.text("#summary")
    assert page.complaints() == []


def test_thinning_keeps_ends_extremes_and_means() -> None:
    x = np.arange(10_001.0)
    y = np.random.default_rng(0).standard_normal(len(x))
    y[1234], y[8765] = 50, -50
    kept_x, kept_y, mean_x, mean_y = thin_curve(x, y, 400)
    assert len(kept_x) <= 400
    assert {0, 1234, 8765, 10_000} <= set(kept_x)
    assert np.array_equal(kept_y, y[kept_x.astype(int)])
    width = int(np.searchsorted(x, mean_x[0])) * 2 + 1
    assert mean_y[0] == pytest.approx(y[:width].mean(), abs=0.02)
    assert len(mean_x) == len(mean_y) <= 200
    assert thin_curve(x[:400], y[:400], 400)[0] is not None
    assert len(thin_curve(x[:400], y[:400], 400)[2]) == 0


def test_the_command_writes_page_and_pictures(cli: Cli, tmp_path: Path) -> None:
    write_sweep(tmp_path / "outputs", 4, seeds=2, steps=50, eval_interval=10)
    done = cli("compare", "outputs", "--html", "page.html", "--png", "a.png", "--pdf", "a.pdf", "--svg", "a.svg")
    assert done.returncode == 0, done.stderr
    assert "html: page.html" in done.stdout
    assert (tmp_path / "page.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    other = cli("compare", "outputs", "--png", "b.pdf")
    assert (other.returncode, other.stderr) == (
        2,
        "config error: --png b.pdf: would not be a pdf file; give --pdf b.pdf\n",
    )
    heads = {"a.png": b"\x89PNG", "a.pdf": b"%PDF", "a.svg": b"<?xml"}
    assert all((tmp_path / name).read_bytes().startswith(head) for name, head in heads.items())
