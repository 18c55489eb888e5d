"""Runs of several processes that one command starts: alone, resumed, repeated, stopped, killed, and in sweeps."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.command_line import Cli, wait_for_step
from support.ranks import train_ranks
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens

from lmtrain.__main__ import dispatch_and_report_errors
from lmtrain.api.training import train
from lmtrain.errors import ConfigError
from lmtrain.files.limited import read_json
from lmtrain.machine import VISIBLE
from lmtrain.run.several.local_processes import LocalProcesses, processes_to_start

RUN = [*TINY, "data.path=data/tiny", "model.dropout=0.1"]
TWO = [*RUN, "parallel.world_size=2"]
ENDS_IN_S = 90


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "data" / "tiny")


def processes_of(run: Path) -> int:
    return int(read_json(run / "environment.json")["world_size"])


@pytest.mark.slow
def test_one_command_trains_with_several_processes_as_torchrun_would(cli: Cli, tmp_path: Path) -> None:
    done = cli(*TWO, "hydra.run.dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 processes with DDP" in done.stdout
    assert done.stderr == ""
    assert done.stdout.count("final loss") == 1
    train_ranks(cli, 2, *RUN, "hydra.run.dir=torchrun")
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(tmp_path / "torchrun")
    # A resume starts the recorded number of processes, or another one on request.
    assert cli("resume=run", "trainer.max_steps=16").returncode == 0
    assert processes_of(tmp_path / "run") == 2
    done = cli("resume=run", "trainer.max_steps=20", "parallel.world_size=4")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 processes with DDP" in done.stdout


@pytest.mark.slow
def test_a_rerun_has_the_processes_of_the_run(cli: Cli, tmp_path: Path) -> None:
    train_ranks(cli, 2, *RUN, "hydra.run.dir=run")
    done = cli("--rerun", "run", "hydra.run.dir=again")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "identical to run" in done.stdout
    assert processes_of(tmp_path / "again") == 2
    first, second = train_ranks(cli, 2, "--rerun", "run", "hydra.run.dir=third")
    assert "identical to run" in first.stdout
    assert second.stdout == second.stderr == ""


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGUSR1, 143)])
def test_a_signal_stops_all_processes_with_everything_saved(cli: Cli, tmp_path: Path, number: int, code: int) -> None:
    process = cli.start(*TWO, "trainer.max_steps=2000", "hydra.run.dir=run")
    wait_for_step(tmp_path / "run", 10)
    process.send_signal(number)
    assert process.wait(ENDS_IN_S) == code, process.stdout + process.stderr
    assert read_json(tmp_path / "run" / "result.json")["status"] == "interrupted"
    assert "everything is saved" in process.stdout
    assert "Traceback" not in process.stdout + process.stderr


@pytest.mark.slow
def test_a_killed_process_ends_the_run(cli: Cli, tmp_path: Path) -> None:
    process = cli.start(*TWO, "trainer.max_steps=2000", "hydra.run.dir=run")
    wait_for_step(tmp_path / "run", 10)
    os.kill(children_of(process.pid)[1], signal.SIGKILL)
    assert process.wait(ENDS_IN_S) == 1
    assert process.stderr == "rank 1 was killed by SIGKILL (out of memory?)\n"
    assert read_json(tmp_path / "run" / "result.json")["status"] == "failed"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signal for the end of a parent")
def test_the_processes_save_and_stop_when_the_command_is_killed(cli: Cli, tmp_path: Path) -> None:
    process = cli.start(*TWO, "trainer.max_steps=5000", "hydra.run.dir=run")
    wait_for_step(tmp_path / "run", 10)
    process.kill()
    deadline = time.monotonic() + ENDS_IN_S
    while not (tmp_path / "run" / "result.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert read_json(tmp_path / "run" / "result.json")["status"] == "interrupted"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["process", "basic"])
def test_each_job_of_a_sweep_starts_its_own_processes(cli: Cli, tmp_path: Path, launcher: str) -> None:
    jobs = ["-m", *RUN, "parallel.world_size=1,2", f"hydra/launcher={launcher}", "hydra.sweep.dir=sweep"]
    done = cli(*jobs, timeout=180)
    assert done.returncode == 0, done.stdout + done.stderr
    logs = sorted((tmp_path / "sweep").glob("world_size=*/job.log"))
    assert ["2 processes with DDP" in log.read_text(encoding="utf-8") for log in logs] == [False, True]


def test_processes_that_would_share_a_gpu_are_refused(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = cli(*TWO, "system.device=cuda:0", "hydra.run.dir=run")
    assert done.returncode == 2
    assert "system.device=cuda:0: 2 processes would share this GPU; use system.device=cuda" in done.stderr
    assert not (tmp_path / "run").exists()
    monkeypatch.setenv(VISIBLE, "0,1,2")
    batches = {"data": {"batch_size": 12}, "trainer": {"gradient_accumulation_steps": 1}}
    config = OmegaConf.create({"system": {"device": "auto"}, "parallel": {"world_size": 4}} | batches)
    with pytest.raises(ConfigError, match=r"world_size=4: each process needs a GPU, and 3 GPUs can be seen here"):
        processes_to_start(config)
    config.parallel.world_size = 3
    assert processes_to_start(config) == 3
    config.parallel.world_size, config.system.device = 4, "cpu"
    assert processes_to_start(config) == 4


def test_a_mistake_is_one_line_before_any_process_starts(cli: Cli) -> None:
    done = cli(*TWO, "trainer.max_step=3")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("verb", ["verify-resume", "api"])
def test_what_works_in_one_process_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if verb == "api":
        with pytest.raises(ConfigError) as caught:
            train(TWO)
        message = str(caught.value)
    else:
        assert dispatch_and_report_errors([verb, *TWO]) == 2
        message = capsys.readouterr().err.removeprefix("config error: ")
    command = "lmtrain.train" if verb == "api" else verb
    assert message.strip() == f"parallel.world_size=2: {command} works in one process; give parallel.world_size=null"


SCRIPT = """
import os, sys, time
if os.environ["RANK"] == "0":
    sys.exit(3)
time.sleep(600)
"""


def test_the_exit_code_is_that_of_rank_0_and_nobody_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lmtrain.run.several.local_processes.FAILURE_GRACE_S", 0.2)
    with LocalProcesses(3, [], tmp_path) as processes:
        processes.command = [sys.executable, "-c", SCRIPT]
        assert processes.run() == 3


def children_of(pid: int) -> list[int]:
    """Return the processes that a process has started, in the order of their start."""
    return sorted(int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())
