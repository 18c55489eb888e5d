"""Runs with `data.batch_size=auto`: they compute the same bits as a run that names the number."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.command_line import Cli
from support.tokens import TINY, write_failing_model

from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.files.metrics import MEASURED, read_metrics
from lmtrain.verify.bit_comparison import UndisturbedRun

WHOLE = 8


@pytest.fixture
def tiny(token_folder: Path) -> list[str]:
    without = ("trainer.gradient_accumulation_steps", "data.batch_size")
    kept = [text for text in TINY if not text.startswith(without)]
    return [*kept, f"data.path={token_folder}", "model.dropout=0.1", f"trainer.global_batch_size={WHOLE}"]


def config_of(run: Path) -> Any:
    return yaml.safe_load((run / "config.yaml").read_text())


@pytest.mark.slow
def test_a_run_that_finds_its_size_has_the_bits_of_one_that_names_it(
    tiny: list[str], tmp_path: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "auto"
    done = cli(*tiny, "data.batch_size=auto", "hydra.run.dir=auto")
    assert done.returncode == 0, done.stdout + done.stderr
    config = config_of(run)
    size = config["data"]["batch_size"]
    assert WHOLE % size == 0
    assert config["trainer"]["gradient_accumulation_steps"] == WHOLE // size
    assert config["trainer"]["global_batch_size"] == WHOLE
    note = re.search(r"data\.batch_size=auto: (\d+), and trainer\.grad.*\(tokens/s by size: (.*)\)", done.stdout)
    assert note is not None, done.stdout
    assert int(note[1]) == size
    assert f"{size}: " in note[2]
    assert json.loads((run / "environment.json").read_text())["resolved"]["data.batch_size"] == size
    assert yaml.safe_load((run / ".hydra" / "config.yaml").read_text())["data"]["batch_size"] == "auto"

    named = cli(*tiny, f"data.batch_size={size}", "hydra.run.dir=named")
    assert named.returncode == 0, named.stdout + named.stderr
    assert not UndisturbedRun(run).differences(tmp_path / "named", completed=True)

    # A resume and a fork keep the number, whatever is the fastest by then.
    longer = cli(f"resume={run}", "trainer.max_steps=16")
    assert longer.returncode == 0, longer.stdout + longer.stderr
    assert "tokens/s by size" not in longer.stdout
    assert config_of(run)["data"]["batch_size"] == size
    monkeypatch.chdir(tmp_path)
    assert f"++data.batch_size={size}" in expand_fork([f"fork={run}"])

    # The same global batches in another cut give the same losses up to rounding.
    other = cli(*tiny, f"data.batch_size={1 if size > 1 else 2}", "model.dropout=0", "hydra.run.dir=other")
    same = cli(*tiny, f"data.batch_size={size}", "model.dropout=0", "hydra.run.dir=same")
    assert (other.returncode, same.returncode) == (0, 0)
    for ours, theirs in zip(losses(tmp_path / "same"), losses(tmp_path / "other"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def losses(run: Path) -> list[float]:
    assert MEASURED
    return [line["train/loss"] for line in read_metrics(run / "metrics.jsonl")]


@pytest.mark.slow
def test_a_mistake_in_a_part_is_shown_as_in_any_run(tiny: list[str], cli: Cli) -> None:
    done = cli(*tiny, "data.batch_size=auto", "model.n_head=5")
    assert done.returncode == 2
    assert "config error: model.d_model=32: must be an even multiple of model.n_head=5" in done.stderr


@pytest.mark.slow
def test_a_trial_that_fails_names_the_reason_and_the_way_out(tiny: list[str], tmp_path: Path, cli: Cli) -> None:
    write_failing_model(tmp_path, "RuntimeError('a bug in the model')", calls=0)
    kept = [text for text in tiny if not text.startswith("model")]
    done = cli(*kept, "model=fails", "data.batch_size=auto")
    assert done.returncode == 2
    assert (
        "config error: data.batch_size=auto: the trial failed with exit code 1 (RuntimeError: a bug in the model); "
        "give a number" in done.stderr
    )
    (result,) = tmp_path.glob("outputs/*/*/result.json")
    assert json.loads(result.read_text())["status"] == "failed"


@pytest.mark.slow
def test_a_run_that_is_stopped_during_the_trial_is_resumed_with_a_trial(
    tiny: list[str], tmp_path: Path, cli: Cli
) -> None:
    run = tmp_path / "run"
    started = cli.start(*tiny, "data.batch_size=auto", "hydra.run.dir=run")
    while not (run / "train.log").exists():
        assert started.poll() is None, started.stderr
        time.sleep(0.01)
    time.sleep(0.3)  # the trial has begun, and needs longer than that to import torch
    started.send_signal(signal.SIGTERM)
    assert started.wait() == 143, started.stderr
    assert json.loads((run / "result.json").read_text())["status"] == "interrupted"
    assert config_of(run)["data"]["batch_size"] == "auto"
    # The trial of a resumed run does not import what lies in the folder in which the run was started.
    (tmp_path / "torch.py").write_text("raise SystemExit(7)\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    cli.folder = elsewhere
    resumed = cli("resume=../run")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert "tokens/s by size" in resumed.stdout
    assert WHOLE % config_of(run)["data"]["batch_size"] == 0


@pytest.mark.slow
@pytest.mark.parametrize("command", [("verify-resume",), ("plan", "--measure")])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_is_stopped_during_its_trial_leaves_nothing(
    tiny: list[str], tmp_path: Path, cli: Cli, command: tuple[str, ...], number: int
) -> None:
    process = cli.start(*command, *tiny, "data.batch_size=auto")
    while not (output := output_of_trial(tmp_path)):
        assert process.poll() is None, process.stdout + process.stderr
        time.sleep(0.001)
    assert output.is_file()
    process.send_signal(number)
    assert process.wait() == 128 + number, process.stderr
    deadline = time.monotonic() + 60
    while output_of_trial(tmp_path):  # stopped while it was started, a trial ends when it reads its input
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not output.parent.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"data"}


def output_of_trial(folder: Path) -> Path | None:
    """Return the file to which a live trial writes that a command in this folder has started; None without one."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd") == str(folder) and b"batch.trial" in (process / "cmdline").read_bytes():
                return Path(os.readlink(process / "fd" / "1"))
        except OSError:  # the process has ended, or belongs to another user
            continue
    return None


@pytest.mark.slow
def test_a_plan_predicts_the_size(tiny: list[str], cli: Cli) -> None:
    done = cli("plan", *tiny, "data.batch_size=auto")
    assert done.returncode == 0, done.stdout + done.stderr
    text = " ".join(done.stdout.split())
    assert "data.batch_size=auto: planned with 8, the largest that fits by prediction" in text
    assert "step 128 tokens" in text


@pytest.mark.slow
def test_a_trial_ends_with_the_process_that_needs_it(tmp_path: Path) -> None:
    code = "import sys, time; from lmtrain.micro_batch.trial import _exit_when_input_ends as end; end(); time.sleep(99)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=100, cwd=tmp_path)
    assert done.returncode == 1, shlex.join(command)
