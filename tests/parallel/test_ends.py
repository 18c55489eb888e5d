"""How several processes end together: stops, resumes, rewinds, and processes that fail, die or hang."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.command_line import Cli, clean_environment, wait_for_line, wait_for_step
from support.ranks import start_ranks, train_ranks, wait_for_all
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens

import lmtrain
from lmtrain.checkpoint.files import verify_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.files.limited import read_json

STEPS = 200
RUN = [*TINY, f"trainer.max_steps={STEPS}", "trainer.checkpoint_interval=20", "trainer.eval_interval=50",
       "model.dropout=0.1", "data.path=data/tiny"]  # fmt: skip
ENDS_IN_S = 90  # seconds in which all processes must have ended, on a busy machine

# A model whose loss is not a number, or which fails, at some forward in training of one process.
FAILING = """
import os
import time
from lmtrain.model.llama import Llama

class Failing(Llama):
    def __init__(self, fault: str, at: int, **sizes):
        super().__init__(**sizes)
        self.fault, self.at, self.calls = fault, at, 0

    def forward(self, tokens, targets=None):
        logits, loss = super().forward(tokens, targets)
        self.calls += self.training
        if self.training and self.calls == self.at and os.environ.get("RANK") == "1":
            if self.fault == "loss":
                return logits, loss * float("nan")
            if self.fault == "slow":
                time.sleep(3)
                return logits, loss
            raise MemoryError("no memory for the activations")
        return logits, loss
"""


@pytest.fixture(autouse=True)
def data(tmp_path: Path) -> Path:
    return write_tokens(tmp_path / "data" / "tiny")


def final_tensors(run: Path) -> dict[str, torch.Tensor]:
    loaded = CheckpointFolder.of_run(run).load_latest()
    assert loaded is not None
    assert loaded.state["train"]["step"] == STEPS
    return {f"{file}/{name}": value for file, each in loaded.tensors.items() for name, value in each.items()}


def assert_same_run(run: Path, whole: Path) -> None:
    """Check that two runs have the same metrics and the same final state, to the bit."""
    assert timeless_metrics(run) == timeless_metrics(whole)
    ours, theirs = final_tensors(run), final_tensors(whole)
    assert ours.keys() == theirs.keys()
    assert [name for name, value in ours.items() if not torch.equal(value, theirs[name])] == []


@pytest.fixture(scope="module")
def whole(module_cli: Cli) -> Path:
    """Return a run of two processes that nothing disturbed."""
    write_tokens(module_cli.folder / "data" / "tiny")
    train_ranks(module_cli, 2, *RUN, "hydra.run.dir=whole")
    return module_cli.folder / "whole"


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "number"), [(0, signal.SIGTERM), (1, signal.SIGTERM), (1, signal.SIGUSR1)])
def test_a_signal_to_one_process_stops_all_at_one_step(
    cli: Cli, tmp_path: Path, whole: Path, rank: int, number: int
) -> None:
    processes = start_ranks(cli, 2, *RUN, "hydra.run.dir=run")
    wait_for_step(tmp_path / "run", 10)
    processes[rank].send_signal(number)
    assert wait_for_all(processes, ENDS_IN_S) == [143, 143]
    assert read_json(tmp_path / "run" / "result.json")["status"] == "interrupted"
    assert "everything is saved" in processes[0].stdout
    train_ranks(cli, 2, "resume=run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_ends_all_and_a_resume_continues_to_the_bit(
    cli: Cli, tmp_path: Path, whole: Path, rank: int
) -> None:
    processes = start_ranks(cli, 2, *RUN, "hydra.run.dir=run")
    wait_for_step(tmp_path / "run", 70)
    processes[rank].kill()
    codes = wait_for_all(processes, ENDS_IN_S)
    assert codes[1 - rank] == 1
    assert "Traceback" not in "".join(each.stdout + each.stderr for each in processes)
    for step in CheckpointFolder.of_run(tmp_path / "run").steps():
        verify_checkpoint(CheckpointFolder.of_run(tmp_path / "run").at(step))
    if rank == 1:
        assert "another process has ended or does not answer" in processes[0].stdout
        assert "to continue from step" in processes[0].stdout
    train_ranks(cli, 2, "resume=run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "options"),
    [(2, ["parallel=ddp"]), (4, ["parallel=fsdp", "parallel.shards=2", "trainer.gradient_accumulation_steps=4"])],
)
def test_a_process_that_hangs_ends_all_within_the_timeout(
    cli: Cli, tmp_path: Path, size: int, options: list[str]
) -> None:
    processes = start_ranks(cli, size, *RUN, *options, "hydra.run.dir=run", "parallel.timeout_s=5")
    wait_for_step(tmp_path / "run", 10)
    began = time.monotonic()
    processes[1].send_signal(signal.SIGSTOP)
    assert processes[0].wait(ENDS_IN_S) == 1
    assert time.monotonic() - began > 4
    assert "another process has ended or does not answer" in processes[0].stdout
    processes[1].send_signal(signal.SIGCONT)
    assert 0 not in wait_for_all(processes, ENDS_IN_S)


@pytest.mark.slow
def test_an_error_in_one_process_is_one_line_with_rank_and_reason(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    failing = ["model._target_=failing.Failing", "+model.fault=memory", "+model.at=50"]
    three = ["trainer.gradient_accumulation_steps=3", "parallel.rank_logs=true"]
    processes = start_ranks(cli, 3, *RUN, *failing, *three, "hydra.run.dir=run")
    assert wait_for_all(processes, ENDS_IN_S) == [1, 1, 1]
    lines = [line for each in processes for line in (each.stdout + each.stderr).splitlines()]
    (line,) = [line for line in lines if "no memory" in line]
    assert line.startswith("failed: rank 1 on ")
    assert line.endswith(": MemoryError: no memory for the activations")
    assert not any("Traceback" in line for line in lines)
    assert "Traceback" in (tmp_path / "run" / "train.log").read_text()
    assert "rank 1 on" in read_json(tmp_path / "run" / "result.json")["error"]
    own = [(tmp_path / "run" / f"rank-{rank}.log").read_text() for rank in (1, 2)]
    assert ["raise MemoryError" in log for log in own] == [True, False]
    assert all("rank" in log.splitlines()[0] and "Traceback" in log for log in own)
    assert not (tmp_path / "run" / "rank-0.log").exists()


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_before_the_first_step_has_ended_waits_for_it(cli: Cli, tmp_path: Path, rank: int) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    slow = ["model._target_=failing.Failing", "+model.fault=slow", "+model.at=1"]
    processes = start_ranks(cli, 2, *RUN, *slow, "hydra.run.dir=run")
    wait_for_line("steps of", processes[0])
    processes[rank].send_signal(signal.SIGTERM)
    assert wait_for_all(processes, ENDS_IN_S) == [143, 143]
    assert "after step 1; everything is saved" in processes[0].stdout
    assert read_json(tmp_path / "run" / "result.json")["status"] == "interrupted"


# A model that takes its time in evaluations until somebody makes the file `fast`, and tells when it is in one.
SLOW_EVALUATION = """
import os
import time
from pathlib import Path
from lmtrain.model.llama import Llama

class Slow(Llama):
    def forward(self, tokens, targets=None):
        if not self.training and not os.path.exists("fast"):
            Path("evaluates").touch()
            time.sleep(0.1)
        return super().forward(tokens, targets)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("rank", "choice"), [(0, "ddp"), (1, "fsdp")])
def test_a_signal_stops_an_evaluation_of_all_processes_and_a_resume_evaluates_the_step(
    cli: Cli, tmp_path: Path, rank: int, choice: str
) -> None:
    (tmp_path / "slow.py").write_text(SLOW_EVALUATION)
    write_tokens(tmp_path / "data" / "large", val=60_000)
    command = [*RUN, "data.path=data/large", "model._target_=slow.Slow", "trainer.max_steps=60"]
    command += ["trainer.eval_batches=900", f"parallel={choice}"]
    processes = start_ranks(cli, 2, *command, "hydra.run.dir=run")  # an evaluation would take 45 seconds
    deadline = time.monotonic() + ENDS_IN_S
    while not (tmp_path / "evaluates").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    processes[rank].send_signal(signal.SIGTERM)
    assert wait_for_all(processes, ENDS_IN_S) == [143, 143]
    loaded = CheckpointFolder.of_run(tmp_path / "run").load_latest()
    assert loaded is not None
    assert loaded.state["train"]["step"] == 50
    assert loaded.state["train"]["pending"] is not None
    (tmp_path / "fast").touch()
    train_ranks(cli, 2, "resume=run", "trust=[slow.Slow]")
    train_ranks(cli, 2, *command, "hydra.run.dir=undisturbed")
    assert timeless_metrics(tmp_path / "run") == timeless_metrics(tmp_path / "undisturbed")


DAMAGED = """
import os
from lmtrain.data.loader import TokenLoader
from lmtrain.errors import DataError

class Damaged(TokenLoader):
    def spaced_blocks(self, sequences):
        if self.split == "val" and os.environ.get("RANK") == "1" and not os.path.exists("repaired"):
            raise DataError("val.bin: can't be read on this host")
        return super().spaced_blocks(sequences)
"""


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_data_that_one_process_cannot_read_stops_all_with_the_step_saved(
    cli: Cli, tmp_path: Path, parallel: str
) -> None:
    (tmp_path / "damaged.py").write_text(DAMAGED)
    options = ["data._target_=damaged.Damaged", f"parallel={parallel}"]
    processes = start_ranks(cli, 2, *RUN, *options, "hydra.run.dir=run")
    codes = wait_for_all(processes, ENDS_IN_S)
    printed = "".join(each.stdout + each.stderr for each in processes)
    assert codes[0] == 2, printed
    assert printed.count("val.bin: can't be read on this host") == 1
    assert "terminate called" not in printed
    assert CheckpointFolder.of_run(tmp_path / "run").steps()[-1] == 50  # the step of the evaluation
    (tmp_path / "repaired").touch()
    train_ranks(cli, 2, "resume=run", "trust=[damaged.Damaged]")
    evaluated = [line["step"] for line in timeless_metrics(tmp_path / "run") if "val/loss" in line]
    assert evaluated == [50, 100, 150, 200]


@pytest.mark.slow
def test_all_processes_rewind_after_a_bad_step_of_one(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text(FAILING)
    failing = ["model._target_=failing.Failing", "+model.fault=loss", "+model.at=50", "trainer.on_bad_step=rewind"]
    first, _ = train_ranks(cli, 2, *RUN, *failing, "hydra.run.dir=run")
    assert "the loss of step 50 is nan" in first.stdout
    assert "went back to step 40" in first.stdout
    result = read_json(tmp_path / "run" / "result.json")
    assert (result["status"], result["bad_steps"]) == ("completed", 1)


@pytest.mark.slow
@pytest.mark.parametrize("later", [1, 4])
def test_a_run_continues_with_another_number_of_processes(cli: Cli, tmp_path: Path, later: int) -> None:
    own = [text for text in RUN if "dropout" not in text] + ["trainer.gradient_accumulation_steps=4"]
    train_ranks(cli, 2, *own, "hydra.run.dir=whole")
    train_ranks(cli, 2, *own, "hydra.run.dir=run", "trainer.max_steps=100", f"scheduler.max_steps={STEPS}")
    train_ranks(cli, later, "resume=run", f"trainer.max_steps={STEPS}")
    ours, theirs = timeless_metrics(tmp_path / "run"), timeless_metrics(tmp_path / "whole")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for line, expected in zip(ours, theirs, strict=True):
        assert line == pytest.approx(expected, rel=1e-4), line["step"]


def start_torchrun(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """Start two processes with torchrun, which ends them when it gets SIGTERM."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    package = {"PYTHONPATH": str(Path(lmtrain.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*torchrun, *arguments],
        cwd=folder,
        env=clean_environment() | package,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_torchrun_stops_a_run_with_everything_saved(cli: Cli, tmp_path: Path, whole: Path) -> None:
    process = start_torchrun(tmp_path, "-m", "lmtrain", *RUN, "hydra.run.dir=run")
    try:
        wait_for_step(tmp_path / "run", 10, timeout_s=120)
    finally:
        process.terminate()
    output, _ = process.communicate(timeout=120)
    assert "stopped by SIGTERM after step" in output
    assert "exiting without saving" not in output
    train_ranks(cli, 2, "resume=run")
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_torchrun_starts_a_run_again_that_then_continues(tmp_path: Path, whole: Path) -> None:
    process = start_torchrun(tmp_path, "--max-restarts=1", "-m", "lmtrain", *RUN, "hydra.run.dir=run")
    try:
        wait_for_step(tmp_path / "run", 70, timeout_s=120)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text(encoding="utf-8").split()
        os.kill(int(children[-1]), signal.SIGKILL)
        output, _ = process.communicate(timeout=240)
    finally:
        process.terminate()
    assert process.returncode == 0, output
    assert "restarted by torchrun: continues the run in run" in output
    assert_same_run(tmp_path / "run", whole)
