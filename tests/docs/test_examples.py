"""Every example of the documentation and the README runs, and prints what the page shows."""

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from support.command_line import Cli, clean_environment
from support.doc_examples import Page

ROOT = Path(__file__).parents[2]
PAGES = [
    ROOT / "README.md",
    *sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts),
]
WITH_EXAMPLES = re.compile(r"^```(console|python)$", re.MULTILINE)
SHOW_A_WHOLE_RUN = (ROOT / "README.md", ROOT / "docs" / "start" / "1-install.md")
BEGIN_WITHOUT_DATA = (*SHOW_A_WHOLE_RUN, ROOT / "docs" / "how-to" / "plan.md")
SHORTER = {  # what the shorter quickstart has, and fewer jobs
    "step=400": "step=20",
    "optimizer.lr=1e-3,3e-3,1e-2 seed=1,2,3 hydra": "optimizer.lr=1e-3,3e-3 seed=1 hydra",
}
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
    pages: list[Path],
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    monkeypatch.chdir(tmp_path)
    renew = request.config.getoption("--renew-docs")
    if not renew or pages[0] not in SHOW_A_WHOLE_RUN:
        write_short_experiments(tmp_path, with_logger=pages[0].parent.name == "start")
    if pages[0] not in BEGIN_WITHOUT_DATA:
        shutil.copytree(prepared_stdlib(tmp_path_factory, cli), tmp_path / "data" / "stdlib")  # keeps times
    environment = clean_environment() | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "COLUMNS": "100",
        "PYTHONIOENCODING": "utf-8",
    }
    names = {} if renew else dict(SHORTER)
    for page in pages:
        Page(page, tmp_path, environment, cli, renew, names).run()


def prepared_stdlib(tmp_path_factory: pytest.TempPathFactory, cli: Cli) -> Path:
    """Prepare the data of quickstart once in each test process."""
    folder = tmp_path_factory.getbasetemp() / "prepared"
    if not folder.exists():
        folder.mkdir()
        done = cli.start("prepare", "data=stdlib", folder=folder)
        assert done.wait() == 0, done.stdout + done.stderr
    return folder / "data" / "stdlib"


def write_short_experiments(folder: Path, *, with_logger: bool) -> None:
    """Shadow shipped experiments by shorter ones; the pages show output of the full ones.

    Without their logger, they do not start W&B, which takes seconds.
    """
    texts = {name: (ROOT / "experiments" / name).read_text("utf-8") for name in ("quickstart.yaml", "own_text.yaml")}
    for key, value, shorter in (
        ("max_steps", 600, 30),
        ("eval_interval", 200, "10\n  checkpoint_interval: 10"),
        ("eval_tokens", 40960, 4096),
        ("warmup_steps", 30, 3),
        ("sample_tokens", 160, 20),
    ):
        text = texts["quickstart.yaml"]
        assert f"{key}: {value}" in text, f"quickstart.yaml has another {key}; update this shorter version"
        texts["quickstart.yaml"] = text.replace(f"{key}: {value}", f"{key}: {shorter}")
    (folder / "experiments").mkdir()
    for name, text in texts.items():
        own = text if with_logger else text.replace("defaults:\n", "defaults:\n  - override /logger: []\n")
        (folder / "experiments" / name).write_text(own, encoding="utf-8")
