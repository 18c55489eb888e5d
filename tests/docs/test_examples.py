"""Every example of the documentation and the README runs, and prints what the page shows."""

import os
import re
import sys
from pathlib import Path

import pytest
from support.command_line import Cli, clean_environment
from support.doc_examples import Page

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
WITH_EXAMPLES = re.compile(r"^```(console|python)$", re.MULTILINE)
SERIES = ("docs/start", "docs/tutorial")  # a reader follows these pages one after another, in one folder


def series() -> dict[str, list[Path]]:
    """Return the pages that have examples, in the order of their names; those of a series are together."""
    found: dict[str, list[Path]] = {}
    for page in PAGES:
        name, folder = (str(path.relative_to(ROOT)) for path in (page, page.parent))
        if WITH_EXAMPLES.search(page.read_text(encoding="utf-8")):
            found.setdefault(folder if folder in SERIES else name, []).append(page)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("pages", series().values(), ids=series())
def test_the_examples_of_a_page_run_and_print_what_it_shows(
    pages: list[Path], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.chdir(tmp_path)
    renew = request.config.getoption("--renew-docs")
    if not renew:
        write_short_quickstart(tmp_path)
    environment = clean_environment() | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "PYTHONIOENCODING": "utf-8",
    }
    names: dict[str, str] = {}
    for page in pages:
        Page(page, tmp_path, environment, cli, renew, names).run()


def write_short_quickstart(folder: Path) -> None:
    """Shadow the shipped experiment by one with a tenth of its steps; the pages show output of the full one."""
    text = (ROOT / "experiments" / "quickstart.yaml").read_text(encoding="utf-8")
    for key, value, shorter in (("max_steps", 600, 60), ("eval_interval", 200, 20), ("warmup_steps", 30, 3)):
        assert f"{key}: {value}" in text, f"quickstart.yaml has another {key}; update this shorter version"
        text = text.replace(f"{key}: {value}", f"{key}: {shorter}")
    (folder / "experiments").mkdir()
    (folder / "experiments" / "quickstart.yaml").write_text(text, encoding="utf-8")
