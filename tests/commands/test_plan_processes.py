"""Tests of `python -m lmtrain plan` for runs of many processes, as a user runs it."""

import json
from pathlib import Path

import pytest
from support.command_line import Cli
from support.tokens import TINY, VOCAB_SIZE

PARAMETERS = VOCAB_SIZE * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32


def test_processes_are_planned_that_need_not_be_there(cli: Cli, tmp_path: Path, token_folder: Path) -> None:
    data = f"data.path={token_folder}"
    shared = ["parallel=fsdp", "parallel.world_size=4", "parallel.shards=2", "parallel.param_dtype=bfloat16"]
    done = cli("plan", *TINY, data, *shared, "--node-size=2", "--price=10", "--json=plan.json")
    assert done.returncode == 0, done.stderr
    numbers = json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))
    found = numbers["processes"]
    assert (found["size"], found["shards"], found["copies"], found["links"]["node_size"]) == (4, 2, 2, 2)
    assert (found["batch_size"], found["micro_batches"]) == (2, 1)  # 8 sequences in a step
    layers = PARAMETERS - VOCAB_SIZE * 32 - 32
    rows = 62 - VOCAB_SIZE  # 61 rows of the embedding are filled up to two shares of 31
    padded = PARAMETERS + 32 * rows
    assert found["sent_bytes_per_step"] == pytest.approx(0.5 * (2 * (padded + layers) + 4 * padded) + 4 * padded / 2)
    assert {"gathered", "on_the_way"} <= found["memory_bytes"].keys()
    h100 = next(gpu for gpu in found["gpu_models"] if gpu["name"] == "H100")
    assert h100["fits"] is True
    assert h100["seconds"] == pytest.approx(12 * h100["step_seconds"])
    assert h100["dollars"] == pytest.approx(4 * 10 * h100["seconds"] / 3600)
    assert 0 < h100["efficiency"] <= 1
    assert numbers["seconds"]["run"] is None  # this machine will not run it
    assert "4 processes with FSDP: 2 copies of the model, each shared by 2" in done.stdout
    assert "on 4 GPUs" in done.stdout
    sweep = cli("plan", "-m", *TINY, data, "parallel=ddp", "parallel.world_size=2,4")
    assert sweep.returncode == 0, sweep.stderr
    assert "each job, with H100 GPUs" in sweep.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["parallel=ddp", "parallel.world_size=3"], "data.batch_size × "
         "trainer.gradient_accumulation_steps = 8: the sequences of a step can't be shared by 3 processes; start 2 or "
         "4, or give a multiple of 3"),
        (["parallel=fsdp", "parallel.world_size=8", "parallel.shards=3"], "parallel.shards=3: does not divide "
         "the 8 processes; give 2 or 4, or null for all"),
        (["parallel=ddp", "parallel.world_size=2", "--measure"], "--measure: measures one process, but "
         "parallel.world_size=2; leave out either of them, or use python -m lmtrain benchmark scaling"),
        (["--node-size=0"], "--node-size 0: must be at least 1"),
    ],
)  # fmt: skip
def test_processes_that_are_impossible_are_errors(
    cli: Cli, token_folder: Path, arguments: list[str], message: str
) -> None:
    refused = cli("plan", *TINY, f"data.path={token_folder}", *arguments)
    assert (refused.returncode, refused.stderr.strip()) == (2, f"config error: {message}")
