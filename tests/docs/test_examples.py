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
SHOW_THE_MODEL = (ROOT / "docs" / "how-to" / "plan.md", ROOT / "docs" / "how-to" / "own-parts.md")
BEGIN_WITHOUT_DATA = (*SHOW_A_WHOLE_RUN, ROOT / "docs" / "how-to" / "plan.md")
SHORTER = {  # what the shorter quickstart has, and fewer jobs
    "step=400": "step=20",
    "optimizer.lr=1e-3,3e-3,1e-2 seed=1,2,3 hydra": "optimizer.lr=1e-3,3e-3 seed=1 hydra",
    "max_steps=200 trainer.eval_interval=50 scheduler": "max_steps=80 trainer.eval_interval=20 scheduler",
    "data.batch_size=8 \\\n    trainer.max_steps=40": "data.batch_size=2 \\\n    trainer.max_steps=40",
    "optimizer.lr=3e-4,3e-3 seed=1,2 \\": "optimizer.lr=3e-4,3e-3 seed=1,2 'logger=[]' \\",  # W&B takes seconds per job
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
        write_short_experiments(
            tmp_path,
            with_logger=pages[0].parent.name == "start",
            small_model=pages[0] not in SHOW_THE_MODEL,
            keep_own_text=pages[0].parent.name == "tutorial",
        )
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


def write_short_experiments(folder: Path, *, with_logger: bool, small_model: bool, keep_own_text: bool) -> None:
    """Shadow shipped experiments by shorter ones; the pages show output of the full ones.

    Without their logger, they do not start W&B, which takes seconds. The tutorial shows the model of own_text.
    """
    texts = {name: (ROOT / "experiments" / name).read_text("utf-8") for name in ("quickstart.yaml", "own_text.yaml")}
    for name, key, value, shorter in (
        ("quickstart.yaml", "max_steps", 600, 30),
        ("quickstart.yaml", "eval_interval", 200, "10\n  checkpoint_interval: 10"),
        ("quickstart.yaml", "eval_tokens", 40960, 4096),
        ("quickstart.yaml", "warmup_steps", 30, 3),
        ("quickstart.yaml", "sample_tokens", 160, 20),
        ("own_text.yaml", "eval_tokens", 81920, 4096),
        ("own_text.yaml", "sample_tokens", 200, 20),
        *(((name, "block_size", 128, 64) for name in texts) if small_model else ()),
    ):
        assert f"{key}: {value}" in texts[name], f"{name} has another {key}; update this shorter version"
        texts[name] = texts[name].replace(f"{key}: {value}", f"{key}: {shorter}")
    if small_model:
        for name in ["quickstart.yaml", *([] if keep_own_text else ["own_text.yaml"])]:
            texts[name] += "model:\n  n_layer: 1\n  d_model: 32\n  d_ff: 64\n"
    (folder / "experiments").mkdir()
    for name, text in texts.items():
        own = text if with_logger else text.replace("defaults:\n", "defaults:\n  - override /logger: []\n")
        (folder / "experiments" / name).write_text(own, encoding="utf-8")
