"""Every command that takes a run also takes its name."""

import json
import shutil
from pathlib import Path

import pytest
from support.command_line import Cli
from support.tokens import TINY, write_tokens

import lmtrain
from lmtrain.commands import compare, evaluate
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.config.recorded.run_names import find_run
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


def test_a_folder_that_is_no_run_does_not_hide_one_with_its_name(folder: Path) -> None:
    (folder / "first").mkdir()
    assert find_run("first") == Path("outputs/tiny/first")
    (folder / "first").rmdir()


def test_a_run_that_failed_at_once_is_not_the_latest(folder: Path) -> None:
    shutil.copytree(folder / "outputs" / "tiny" / "second", failed := folder / "outputs" / "tiny" / "third")
    shutil.rmtree(failed / "checkpoints")
    for name, key, value in (("result", "status", "failed"), ("environment", "started", "2100-01-01T00:00:00+00:00")):
        content = json.loads((failed / f"{name}.json").read_text(encoding="utf-8"))
        (failed / f"{name}.json").write_text(json.dumps(content | {key: value}), encoding="utf-8")
    assert find_run("latest") == find_run("tiny") == Path("outputs/tiny/second")
    with pytest.raises(ConfigError, match="third: has no checkpoint; the run has ended without one"):
        lmtrain.load_run("third").load()
    shutil.rmtree(failed)
    assert find_run("latest") == Path("outputs/tiny/second")


def test_a_name_of_nothing_is_told_with_the_runs_that_are_there(folder: Path) -> None:
    with pytest.raises(ConfigError, match="nothere: no such run; below outputs/ are outputs/tiny/second, outputs/tiny"):
        lmtrain.load_run("nothere")
    with pytest.raises(ConfigError, match="nothere: no such run"):
        evaluate.main(["first", "nothere"])
    (folder / "exported").mkdir()
    (folder / "exported" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="make a run of it with python -m lmtrain import exported"):
        lmtrain.load_run("exported")


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
