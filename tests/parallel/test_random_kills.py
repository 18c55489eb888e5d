"""Processes that share a model are killed at random moments and continued, at the same and at other numbers of them.

`KILLS=60 SEED=2 pytest tests/parallel/test_random_kills.py -s` kills more often, and prints each kill.
"""

import os
import random
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from support.command_line import Cli, Started
from support.ranks import start_ranks, train_ranks, wait_for_all
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, write_tokens

from lmtrain.checkpoint.files import load_checkpoint, verify_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder

KILLS, SEED = int(os.environ.get("KILLS", "4")), os.environ.get("SEED", "1")  # half of the kills in each test
STEPS = 60
RUN = [*TINY, f"trainer.max_steps={STEPS}", "trainer.checkpoint_interval=5", "trainer.eval_interval=20",
       "data.batch_size=6", "trainer.gradient_accumulation_steps=4", "data.path=data/tiny",
       "parallel=fsdp"]  # fmt: skip
ANSWERS = "parallel.timeout_s=20"
ENDS_IN_S = 90
STILL_WAITS = ("waits for the other", "can't reach rank 0")  # said by processes that have not met yet


@pytest.mark.slow
@pytest.mark.parametrize("same", [True, False])
def test_killed_runs_continue_as_if_nothing_had_happened(cli: Cli, tmp_path: Path, same: bool) -> None:
    """With the same number of processes to the bit, otherwise with the losses of one process."""
    write_tokens(tmp_path / "data" / "tiny")
    chance = random.Random(f"{SEED} {same}")
    dropout = "model.dropout=0.1" if same else "model.dropout=0.0"  # masks depend on the number of processes
    began = time.monotonic()
    train_ranks(cli, 2 if same else 1, *RUN, dropout, "hydra.run.dir=whole")
    takes_s = time.monotonic() - began
    kills = number = 0
    while kills < KILLS // 2:
        number += 1
        run, arguments = tmp_path / f"run-{number}", [*RUN, dropout, f"hydra.run.dir=run-{number}"]
        while True:
            size = 2 if same else chance.choice((1, 2, 3, 4))
            way = "fsdp" if same or arguments[0] == RUN[0] else chance.choice(("ddp", "fsdp"))
            own = [] if arguments[0] == RUN[0] else [f"parallel={way}"]
            processes = start_ranks(cli, size, *arguments, ANSWERS, *own)
            rank, everyone = chance.randrange(size), chance.random() < 0.2
            deadline = time.monotonic() + chance.uniform(0.05, 1.0) * takes_s * (1 + size / 4)
            while time.monotonic() < deadline and any(each.poll() is None for each in processes):
                time.sleep(0.01)
            if all(each.poll() is not None for each in processes):
                assert wait_for_all(processes) == [0] * size, [each.stdout + each.stderr for each in processes]
                break
            for process in processes if everyone else [processes[rank]]:
                process.kill()
            ended = time.monotonic()
            codes = wait_as_torchrun(processes)
            kills += signal.SIGKILL in [-code for code in codes]
            folder = CheckpointFolder.of_run(run)
            for step in folder.steps():
                verify_checkpoint(folder.at(step))
            print(
                f"{way} × {size}: killed {'all' if everyone else f'rank {rank}'}, newest checkpoint "
                f"{max(folder.steps(), default=None)}, all ended after {time.monotonic() - ended:.1f} s"
            )
            if folder.steps() and (run / "config.yaml").exists():
                arguments = [f"resume={run.name}"]
            else:
                shutil.rmtree(run, ignore_errors=True)
        compare(run, tmp_path / "whole", same)


def wait_as_torchrun(processes: Sequence[Started]) -> list[int]:
    """Return the exit codes; processes that were never met by a killed one would wait for it, and are terminated."""
    deadline = time.monotonic() + ENDS_IN_S
    while time.monotonic() < deadline and (running := [each for each in processes if each.poll() is None]):
        for process in running:
            if any(words in process.stderr for words in STILL_WAITS):
                process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
    return wait_for_all(processes, 1)


def compare(run: Path, whole: Path, same: bool) -> None:
    ours, theirs = timeless_metrics(run), timeless_metrics(whole)
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    if not same:
        for line, expected in zip(ours, theirs, strict=True):
            assert line.keys() == expected.keys()
            for key in line.keys() & {"train/loss", "val/loss"}:
                assert line[key] == pytest.approx(expected[key], rel=1e-5), line["step"]
        return
    assert ours == theirs
    first, second = (load_checkpoint(CheckpointFolder.of_run(each).at(STEPS)) for each in (run, whole))
    assert first.tensors.keys() == second.tensors.keys()
    for file, tensors in second.tensors.items():
        assert [name for name, tensor in tensors.items() if not torch.equal(first.tensors[file][name], tensor)] == []
