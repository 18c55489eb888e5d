"""Tests of starting a run: which checks are made, in which order, and that a refused run leaves nothing behind."""

import os
from pathlib import Path

import pytest
import yaml
from support.tokens import TINY

from lmtrain.errors import ConfigError
from lmtrain.run.new_run import NewRun, new_run, start

RECIPE = ["data=text", "prepare.source.files=book.txt", "prepare.tokenizer.vocab_size=300", "data.path=tokens"]


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def tiny(token_folder: Path) -> list[str]:
    return [*TINY, f"data.path={token_folder}", "logger=[]"]


def test_a_new_run_is_checked_before_anything_is_written(tiny: list[str], tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    run = new_run([*tiny, "name='mine-${run_id:}'"])
    assert sorted(tmp_path.rglob("*")) == before
    assert run.cfg.model.vocab_size == 61  # from the data
    folder = run.directory.parent.name
    assert folder == run.cfg.name != "mine-${run_id:}"
    assert run.directory.name.endswith(folder.removeprefix("mine"))  # both have the same id
    assert sorted(run.hydra_files) == ["config.yaml", "hydra.yaml", "overrides.yaml"]
    texts = {name: yaml.safe_load(text) for name, text in run.hydra_files.items()}
    assert texts["config.yaml"]["name"] == "mine-${run_id:}"
    assert "hydra" not in texts["config.yaml"]
    settings = texts["hydra.yaml"]["hydra"]
    assert settings["mode"] == "RUN"
    assert settings["runtime"]["output_dir"] == str(run.directory.absolute())
    assert settings["sweep"]["subdir"].startswith("${job_directory:")  # it stays unresolved, because nothing needs it
    assert texts["overrides.yaml"] == [*tiny, "name='mine-${run_id:}'"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_stepz=3"], "trainer.max_stepz=3: unknown key"),
        (["optimizer.lr=high"], "optimizer.lr=high: input should be a valid number"),
        (["++resume=old"], "resume=old: can't be set in a config"),
        (["step=3"], "step=3: works only with fork=RUN_DIR"),
        (["hydra.mode=MULTIRUN"], "hydra.mode=MULTIRUN: is not supported; give -m for a sweep"),
        (["hydra.job.chdir=true"], "hydra.job.chdir=true: is not supported; relative paths start"),
        (["hydra.run.dir=old"], "hydra.run.dir=old: already contains a run"),
    ],
)
def test_no_data_is_prepared_for_a_run_that_is_refused(tmp_path: Path, overrides: list[str], message: str) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "metrics.jsonl").touch()
    (tmp_path / "book.txt").write_text("It was the best of times, it was the worst of times. " * 400)
    with pytest.raises(ConfigError) as caught:
        new_run([*RECIPE, *overrides])
    assert str(caught.value).startswith(message)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["book.txt", "old"]


def test_a_mistake_in_the_config_is_reported_before_one_in_the_directory(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigError, match=r"trainer\.max_stepz=3: unknown key"):
        new_run([*tiny, "trainer.max_stepz=3", f"hydra.run.dir={tmp_path}"])


def test_a_directory_with_other_files_is_refused_on_request(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert new_run([*tiny, "hydra.run.dir=run"], needs_empty_directory=True).directory == Path("run")
    (tmp_path / "run" / "job.log").touch()  # a sweep creates it before its job starts
    assert new_run([*tiny, "hydra.run.dir=run"]).directory == Path("run")
    with pytest.raises(ConfigError, match=r"^hydra\.run\.dir=run: exists already; give another folder$"):
        new_run([*tiny, "hydra.run.dir=run"], needs_empty_directory=True)


def test_an_unknown_key_set_by_an_experiment_names_the_experiment(tiny: list[str], tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    lines = ["# @package _global_", "defaults:", "  - override /model: llama_1m", "model:", "  gelu: exact"]
    (tmp_path / "experiments" / "mine.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"set by experiments=mine; leave it out with '~model.gelu'"):
        new_run([*tiny, "experiments=mine"])


def test_environment_variables_set_by_hydra_apply_to_preflight_and_start(
    tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WIDTH", raising=False)
    run = new_run([*tiny, "+hydra.job.env_set.WIDTH='48'", "model.d_ff='${oc.decode:${oc.env:WIDTH}}'"])
    assert run.cfg.model.d_ff == 48
    assert "WIDTH" not in os.environ

    def train(given: NewRun) -> int:
        assert given is run
        return int(os.environ["WIDTH"])

    assert start(run, train) == 48
    assert "WIDTH" not in os.environ


def test_an_exception_in_training_is_raised_again(tiny: list[str]) -> None:
    for error in (ConfigError("data.path=x: gone"), RuntimeError("out of memory")):

        def train(run: NewRun, error: Exception = error) -> int:
            raise error

        with pytest.raises(type(error)) as caught:
            start(new_run(tiny), train)
        assert caught.value is error


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("hydra.run.dir=book.txt/run", "book.txt"),
        ("+hydra.callbacks.mine._target_=no.such.Callback", "Error locating target 'no.such.Callback'"),
    ],
)
def test_a_folder_or_callback_that_cannot_be_created_is_a_config_error(
    tiny: list[str], tmp_path: Path, override: str, message: str
) -> None:
    (tmp_path / "book.txt").touch()
    with pytest.raises(ConfigError) as caught:
        start(new_run([*tiny, override]), lambda run: 0)
    assert message in str(caught.value)
