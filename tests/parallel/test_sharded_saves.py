"""Processes that share a model are killed while they save together, or stopped: a checkpoint is whole, or is none."""

import signal
from pathlib import Path

import pytest
import torch
from support.command_line import Cli, wait_for_step
from support.ranks import start_ranks, train_ranks, wait_for_all
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens

from lmtrain.checkpoint.files import load_checkpoint, verify_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.files.metrics import read_metrics

STEPS = 60
RUN = [*TINY, f"trainer.max_steps={STEPS}", "trainer.checkpoint_interval=10", "trainer.eval_interval=30",
       "data.batch_size=6", "trainer.gradient_accumulation_steps=4", "data.path=data/tiny",
       "parallel=fsdp"]  # fmt: skip
DROPOUT = "model.dropout=0.1"
ENDS_IN_S = 90

# A model whose module kills its process at a moment of a save: `DIES` is `<rank> <moment> <number of the save>`.
DYING = """
import os
import signal
from lmtrain.checkpoint.several import sharded_folder
from lmtrain.model.llama import Llama

RANK, MOMENT, SAVE = (os.environ.get("DIES") or "9 never 0").split()
SAVES = 0
write, rename = sharded_folder.write_files, os.rename

def die():
    if os.environ["RANK"] == RANK and SAVES == int(SAVE):
        os.kill(os.getpid(), signal.SIGKILL)

def write_and_die(*arguments, **more):
    global SAVES
    SAVES += 1
    if MOMENT == "before":
        die()
    entries = write(*arguments, **more)
    if MOMENT == "after":
        die()
    return entries

def die_before_rename(source, target):
    if MOMENT == "rename" and "step-" in str(target):
        die()
    rename(source, target)

sharded_folder.write_files, os.rename = write_and_die, die_before_rename

class Dying(Llama):
    pass
"""


@pytest.fixture(autouse=True)
def files(tmp_path: Path) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    (tmp_path / "dying.py").write_text(DYING)


@pytest.fixture(scope="module")
def whole(module_cli: Cli) -> Path:
    """Return a run of two processes that nothing disturbed."""
    write_tokens(module_cli.folder / "data" / "tiny")
    train_ranks(module_cli, 2, *RUN, DROPOUT, "hydra.run.dir=whole")
    return module_cli.folder / "whole"


def assert_same_bits(run: Path, whole: Path) -> None:
    assert timeless_metrics(run) == timeless_metrics(whole)
    ours, theirs = (load_checkpoint(CheckpointFolder.of_run(each).at(STEPS)) for each in (run, whole))
    assert ours.tensors.keys() == theirs.tensors.keys()
    for file, tensors in theirs.tensors.items():
        assert ours.tensors[file].keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert torch.equal(ours.tensors[file][name], tensor), (file, name)


@pytest.mark.slow
@pytest.mark.parametrize("dies", ["1 before 3", "1 after 3", "0 before 3", "0 rename 3"])
def test_a_process_that_is_killed_in_a_save(cli: Cli, tmp_path: Path, whole: Path, dies: str) -> None:
    model = "model._target_=dying.Dying"
    processes = start_ranks(cli, 2, *RUN, DROPOUT, model, "hydra.run.dir=run", DIES=dies)
    codes = wait_for_all(processes, ENDS_IN_S)
    assert codes[int(dies[0])] == -signal.SIGKILL, [each.stdout + each.stderr for each in processes]
    assert codes[1 - int(dies[0])] != 0
    folder = CheckpointFolder.of_run(tmp_path / "run")
    assert folder.steps() == [10, 20]
    for step in folder.steps():
        verify_checkpoint(folder.at(step))
    train_ranks(cli, 2, "resume=run", "trust=dying.Dying")
    assert_same_bits(tmp_path / "run", whole)


@pytest.mark.slow
def test_stopped_and_killed_runs_continue_to_the_bit(cli: Cli, tmp_path: Path, whole: Path) -> None:
    processes = start_ranks(cli, 2, *RUN, DROPOUT, "hydra.run.dir=run")
    wait_for_step(tmp_path / "run", 12)
    processes[1].send_signal(signal.SIGTERM)
    assert wait_for_all(processes, ENDS_IN_S) == [143, 143]
    processes = start_ranks(cli, 2, "resume=run")
    wait_for_step(tmp_path / "run", 35)
    for process in processes:
        process.kill()
    wait_for_all(processes, ENDS_IN_S)
    train_ranks(cli, 2, "resume=run")
    assert_same_bits(tmp_path / "run", whole)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_run_continues_in_other_ways_of_sharing(cli: Cli, tmp_path: Path, optimizer: str) -> None:
    """State and data order stay exact, so that the losses are those of one process."""
    options = [*RUN, "model.dropout=0.0", f"optimizer={optimizer}", "trainer.ema_decay=0.9", "scheduler.max_steps=60"]
    assert cli(*options, "parallel=none", "hydra.run.dir=alone", OMP_NUM_THREADS="1").returncode == 0
    train_ranks(cli, 4, *options, "parallel.shards=2", "trainer.max_steps=15", "hydra.run.dir=run")
    for size, parallel, steps in ((2, "ddp", 30), (1, "none", 40), (3, "fsdp", 50), (1, "fsdp", 60)):
        train_ranks(cli, size, "resume=run", f"parallel={parallel}", f"trainer.max_steps={steps}")
    one, several = (
        {line["step"]: line for line in read_metrics(tmp_path / run / "metrics.jsonl")} for run in ("alone", "run")
    )
    assert one.keys() == several.keys()
    for step, line in one.items():
        for key in ("train/loss", "grad_norm", "tokens", *(["val/loss"] if step in (30, 60) else [])):
            assert several[step][key] == pytest.approx(line[key], rel=1e-5), (step, key)
    assert cli("evaluate", "run").returncode == 0
    assert cli("average", "run", "--steps", "50,60").returncode == 0


@pytest.mark.slow
def test_the_first_weights_have_the_bits_of_one_process(cli: Cli, tmp_path: Path) -> None:
    """Only the first process builds them; a rate of almost zero leaves them as they are."""
    options = [*RUN, "trainer.max_steps=1", "optimizer.lr=1e-30", "scheduler.lr=1e-30", "scheduler.min_lr=0"]
    assert cli(*options, "parallel=none", "hydra.run.dir=alone").returncode == 0
    train_ranks(cli, 3, *options, "hydra.run.dir=run", "sample_tokens=8")
    ours, theirs = (load_checkpoint(CheckpointFolder.of_run(tmp_path / run).at(1)) for run in ("run", "alone"))
    for name, tensor in theirs.tensors["model"].items():
        assert torch.equal(ours.tensors["model"][name], tensor), name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["parallel.shards=2"], "parallel.shards=2: does not divide the 3 processes; give 1 or 3, or null"),
        (["parallel.world_size=2"], "parallel.world_size=2: 3 processes were started"),
        (["parallel.param_dtype=bfloat16"], "parallel.param_dtype=bfloat16: needs system.dtype=bfloat16"),
    ],
)
def test_mistakes(cli: Cli, options: list[str], message: str) -> None:
    processes = start_ranks(cli, 3, *RUN, *options)
    assert 0 not in wait_for_all(processes, ENDS_IN_S)
    assert message in processes[0].stdout + processes[0].stderr
    assert "Traceback" not in processes[0].stdout + processes[0].stderr
