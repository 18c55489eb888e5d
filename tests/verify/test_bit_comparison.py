"""Two runs are equal only if every bit is equal, apart from times and names."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from lmtrain.checkpoint.files import MANIFEST, Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.files.durable import sha256_of
from lmtrain.files.metrics import MEASURED
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.verify.bit_comparison import UndisturbedRun, tensor_differences

RESULT = {"status": "completed", "final_train_loss": 3.5, "steps": 3, "seconds": 1.0}


def write_run(path: Path, clock: float) -> Path:
    """Write a run of three steps, each with a line and a checkpoint; runs differ only in `clock`."""
    folder = CheckpointFolder(path / "checkpoints")
    path.mkdir()
    logger = JsonlLogger(path / "metrics.jsonl")
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": math.nan if step == 2 else 5 - 0.5 * step, **dict.fromkeys(MEASURED, clock)})
        tensors = {
            "model": {"first": torch.arange(6.0).reshape(2, 3) + step, "second": torch.zeros(4, dtype=torch.bfloat16)},
            "optimizer": {"first.step": torch.tensor(float(step))},
            "rng-0": {"torch": torch.arange(16, dtype=torch.uint8)},
        }
        state = {
            "train": {"step": step, "tokens": 128 * step, "train_loss": math.nan, "seconds": clock},
            "data": {
                "fingerprints": {"train": "1a", "val": "2b"},
                "order_version": 1,
                "stamps": {"train": {"train.bin": [8, clock]}},
            },
            "config": {"name": f"at {clock}"},
        }
        folder.save(step, Checkpoint(tensors, state), Retention(newest=9))
    logger.close("completed")
    (path / "result.json").write_text(json.dumps({**RESULT, "seconds": clock}))
    return path


@pytest.fixture
def runs(tmp_path: Path) -> tuple[UndisturbedRun, Path]:
    return UndisturbedRun(write_run(tmp_path / "undisturbed", 1.0)), write_run(tmp_path / "killed", 2.0)


def found(runs: tuple[UndisturbedRun, Path], completed: bool = True) -> list[str]:
    undisturbed, killed = runs
    return [str(difference) for difference in undisturbed.differences(killed, completed=completed)]


def change_checkpoint(run: Path, step: int, name: str, change: Callable[[Path], None]) -> None:
    """Change a file and its manifest entry, so that the checkpoint is not damaged but different."""
    path = CheckpointFolder(run / "checkpoints").at(step)
    change(path / name)
    manifest = json.loads((path / MANIFEST).read_text())
    manifest[name] = {"size": (path / name).stat().st_size, "sha256": sha256_of(path / name)}
    (path / MANIFEST).write_text(json.dumps(manifest))


def in_json(change: Callable[[Any], None]) -> Callable[[Path], None]:
    def edit(path: Path) -> None:
        content = json.loads(path.read_text(encoding="utf-8"))
        change(content)
        path.write_text(json.dumps(content), encoding="utf-8")

    return edit


def change_lines(run: Path, change: Callable[[list[str]], None]) -> None:
    lines = (run / "metrics.jsonl").read_text().splitlines()
    change(lines)
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def test_times_and_names_may_differ_and_nothing_is_compared_twice(runs: tuple[UndisturbedRun, Path]) -> None:
    undisturbed, killed = runs
    for _ in range(2):
        assert found(runs) == []
        assert (undisturbed.compared_checkpoints, undisturbed.compared_lines) == (3, 3)
    shutil.rmtree(killed / "checkpoints" / "step-00000002")  # pruned
    (killed / "result.json").unlink()
    assert found(runs, completed=False) == []
    assert "step 3, result.json: status: completed → null" in found(runs)


def test_one_bit_of_a_tensor_is_found_and_named(runs: tuple[UndisturbedRun, Path]) -> None:
    def flip(path: Path) -> None:
        tensors = load_file(path)
        tensors["first"].view(torch.int32)[1, 2] ^= 1
        save_file(tensors, path)

    assert found(runs) == []
    change_checkpoint(runs[1], 2, "model.safetensors", flip)
    assert found(runs) == [
        "step 2, checkpoints/step-00000002: model.safetensors: first[1, 2] 7.0 → 7.000000476837158, "
        "1 of 6 elements (1 of 2 tensors differ)"
    ]


def test_another_position_in_the_data_and_other_data_are_found(runs: tuple[UndisturbedRun, Path]) -> None:
    def move(state: Any) -> None:
        state["train"]["tokens"] += 1
        state["data"]["fingerprints"]["val"] = "3c"
        state["train"]["seconds"] = 99.0

    change_checkpoint(runs[1], 3, "state.json", in_json(move))
    assert found(runs) == ["step 3, checkpoints/step-00000003: train.tokens: 384 → 385; data.fingerprints.val: 2b → 3c"]


def test_damaged_checkpoints_are_found(runs: tuple[UndisturbedRun, Path]) -> None:
    checkpoints = CheckpointFolder(runs[1] / "checkpoints")
    (checkpoints.at(1) / "state.json").unlink()
    assert found(runs) == ["step 1, checkpoints/step-00000001: a kill broke it: 'state.json' is missing"]
    checkpoints.at(2).rename(checkpoints.path / "broken-step-00000002-0")
    checkpoints.at(3).rename(checkpoints.at(7))
    assert found(runs)[1:] == [
        "step 2, checkpoints/broken-step-00000002-0: a kill broke a complete checkpoint",
        "step 7, checkpoints/step-00000007: the undisturbed run has no checkpoint of this step",
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines.__setitem__(2, lines[2].replace("3.5", "3.5000000000000004")), 
         "step 3, metrics.jsonl: train/loss: 3.5 → 3.5000000000000004"),
        (lambda lines: lines.__setitem__(1, lines[1].replace("null", "1.0")), 
         "step 2, metrics.jsonl: train/loss: NaN → 1.0"),
        (lambda lines: lines.insert(1, lines[0]), "step 1, metrics.jsonl: the step is logged twice"),
        (lambda lines: lines.pop(1), "step 2, metrics.jsonl: the line is missing; step 3 follows"),
        (lambda lines: lines.append(lines[2].replace('"step": 3', '"step": 4')), 
         "step 4, metrics.jsonl: a line that the undisturbed run does not have"),
    ],
)  # fmt: skip
def test_every_change_of_the_metrics_is_found(
    runs: tuple[UndisturbedRun, Path], change: Callable[[list[str]], None], message: str
) -> None:
    change_lines(runs[1], change)
    assert found(runs, completed=False) == [message]


def test_missing_last_lines_are_a_difference_only_after_completion(runs: tuple[UndisturbedRun, Path]) -> None:
    change_lines(runs[1], lambda lines: lines.pop())
    assert found(runs, completed=False) == []
    assert found(runs) == ["step 3, metrics.jsonl: the line is missing at the end"]


def test_tensors_are_compared_by_their_bytes() -> None:
    nan = torch.tensor([math.nan, 0.0])
    assert tensor_differences({"a": nan}, {"a": nan.clone()}) is None
    assert tensor_differences({"a": nan}, {"a": nan * torch.tensor([1.0, -1.0])}) == (
        "a[1] 0.0 → -0.0, 1 of 2 elements (1 of 1 tensors differ)"
    )
    scalar = torch.tensor(3)
    assert tensor_differences({"a": scalar, "b": scalar}, {"a": scalar, "b": scalar + 1}) == (
        "b 3 → 4, 1 of 1 elements (1 of 2 tensors differ)"
    )
    assert "torch.int64 of shape [] → torch.float32 of shape [2]" in str(tensor_differences({"a": scalar}, {"a": nan}))
    assert "b is in only one of them" in str(tensor_differences({"a": nan}, {"a": nan, "b": nan}))
    assert tensor_differences({"a": torch.empty(0)}, {"a": torch.empty(0)}) is None
