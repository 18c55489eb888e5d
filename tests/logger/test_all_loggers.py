"""All loggers at once, in runs from the command line: killed, resumed, and with missing packages."""

import csv
import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.command_line import Cli
from support.tokens import TINY
from support.wandb_file import read_run

from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.files.metrics import read_metrics

pytest.importorskip("tensorboard")
pytest.importorskip("trackio")

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

ALL = "logger=[wandb,tensorboard,trackio,csv]"


@pytest.mark.slow
def test_all_loggers_agree_on_a_killed_and_resumed_run(tmp_path: Path, token_folder: Path, cli: Cli) -> None:
    given = [text for text in TINY if not text.startswith(("logger", "trainer.max_steps"))]
    overrides = [*given, f"data.path={token_folder}", ALL, "experiments=smoke", *given, "hydra.run.dir=outputs/a"]
    process = cli.start(*overrides, "trainer.max_steps=100000")
    run_dir = tmp_path / "outputs" / "a"
    deadline = time.monotonic() + 90
    while not (run_dir / "checkpoints" / "latest").exists() or len(read_metrics(run_dir / "metrics.jsonl")) < 14:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    killed_after = checkpoint_steps(run_dir)[-1]  # the link may come too late
    resumed = cli(f"resume={run_dir}", f"trainer.max_steps={killed_after + 8}")
    assert resumed.returncode == 0, resumed.stderr

    truth = read_metrics(run_dir / "metrics.jsonl")
    steps = list(range(1, killed_after + 9))
    assert [line["step"] for line in truth] == steps

    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert rows == truth

    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    for name in ("train/loss", "val/loss", "lr"):
        logged = [(event.step, event.value) for event in events.Scalars(name)]
        assert logged == [(line["step"], pytest.approx(line[name], rel=1e-6)) for line in truth if name in line]

    run_id = json.loads((run_dir / "environment.json").read_text())["run_id"]
    with closing(sqlite3.connect(tmp_path / "outputs" / "trackio" / "lmtrain.db")) as database:
        found = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY step").fetchall()
    assert {name for name, _, _ in found} == {f"smoke-a-{run_id}"}
    assert [{"step": step, **json.loads(metrics)} for _, step, metrics in found] == truth

    parts = [read_run(path) for path in sorted(run_dir.glob("wandb/offline-run-*/*.wandb"))]
    assert [part.id for part in parts] == [run_id, run_id]
    assert parts[1].display_name == "smoke-a"
    assert parts[1].tags == ["smoke"]
    assert [line["step"] for line in parts[1].history] == steps[killed_after:]
    links = list((tmp_path / "outputs" / "wandb").iterdir())
    assert [os.readlink(link) for link in links] == [f"../a/wandb/{link.name}" for link in links]
    assert [link.resolve().parent for link in links] == [run_dir / "wandb"] * 2

    assert "wandb sync outputs/a/wandb/offline-run-*\n" in resumed.stdout
    assert "TRACKIO_DIR=outputs/trackio trackio show --project lmtrain\n" in resumed.stdout
    assert "no more metrics" not in resumed.stdout


@pytest.mark.parametrize("package", ["tensorboard", "trackio"])
def test_a_missing_package_is_reported_before_any_file_is_written(
    package: str, tmp_path: Path, token_folder: Path, cli: Cli
) -> None:
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "sitecustomize.py").write_text(f"import sys\nsys.modules[{package!r}] = None\n")  # as if not installed
    overrides = [text for text in TINY if text != "logger=[]"]
    done = cli(*overrides, f"data.path={token_folder}", f"logger=[csv,{package}]", PYTHONPATH=str(spy))
    assert done.returncode == 2
    expected = (
        f"config error: logger={package}: needs the package {package}; "
        f"install it with pip install 'lmtrain[{package}]'\n"
    )
    assert done.stderr == expected
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_the_name_and_tags_of_a_job_describe_it(tmp_path: Path, token_folder: Path, cli: Cli) -> None:
    given = [text for text in TINY if not text.startswith(("logger", "trainer.max_steps"))]
    (tmp_path / "outputs" / "sweep-1").mkdir(parents=True)
    (tmp_path / "outputs" / "sweep-1" / "multirun.yaml").touch()
    job = "hydra.run.dir='outputs/sweep-1/optimizer.lr=0.001,seed=1'"
    tags = "logger.wandb.tags=[mine,sweep]"
    overrides = [*given, f"data.path={token_folder}", "trainer.max_steps=1", "logger=wandb", tags]
    done = cli("experiments=smoke", *overrides, job, "logger.wandb.links=null")
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "outputs" / "sweep-1").glob("*/wandb/offline-run-*/*.wandb")
    run = read_run(file)
    assert (run.display_name, run.group) == ("optimizer.lr=0.001,seed=1", "sweep-1")
    assert run.tags == ["mine", "sweep", "smoke"]
    assert run.config["optimizer.lr"] == 6e-4
    assert not (tmp_path / "outputs" / "wandb").exists()
