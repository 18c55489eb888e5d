"""Every command that takes a run also takes its name."""

from pathlib import Path

import pytest
from support.command_line import Cli
from support.tokens import TINY, write_tokens

import lmtrain
from lmtrain.commands import compare, evaluate
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.run.resumed_run import resume_requested


@pytest.fixture(scope="module")
def folder(module_cli: Cli) -> Path:
    """Return a folder with two runs of one step below `outputs/`."""
    write_tokens(module_cli.folder / "data")
    for run in ("first", "second"):
        done = module_cli(*TINY, "data.path=data", "trainer.max_steps=1", f"hydra.run.dir=outputs/tiny/{run}")
        assert done.returncode == 0, done.stderr
    return module_cli.folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)


def test_a_run_is_resumed_and_forked_by_its_name() -> None:
    second = Path("outputs/tiny/second")
    assert resume_requested(["resume=tiny", "seed=1"]) == (second, ["seed=1"])
    assert resume_requested(["resume='latest'"]) == (second, [])
    (fork,) = (text for text in expand_fork(["fork=first"]) if "fork=" in text)
    assert "outputs/tiny/first" in fork


def test_python_finds_runs_by_name() -> None:
    assert lmtrain.load_run("latest").directory.name == "second"
    assert lmtrain.load_run("outputs/tiny/first").directory.name == "first"


@pytest.mark.parametrize(("name", "run"), [("first", "first"), ("outputs/tiny", "second"), ("latest", "second")])
def test_a_run_is_evaluated_and_compared_by_its_name(
    name: str, run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert evaluate.main([name, "--device", "cpu"]) == 0
    assert f"outputs/tiny/{run}" in capsys.readouterr().out
    assert compare.main([name]) == 0  # of a folder, it compares all runs
    assert capsys.readouterr().err == ""


def test_a_run_is_repeated_by_its_name(module_cli: Cli) -> None:
    done = module_cli("--rerun", "second", "hydra.run.dir=again")
    assert done.returncode == 0, done.stderr
    assert "outputs/tiny/second" in done.stdout


def test_an_ambiguous_name_is_a_mistake() -> None:
    run = Path("outputs/other/second")
    run.mkdir(parents=True)
    for name in ("config.yaml", "environment.json"):
        (run / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"^resume=second: could be outputs/\w+/second, outputs/\w+/second; give one"):
        resume_requested(["resume=second"])
