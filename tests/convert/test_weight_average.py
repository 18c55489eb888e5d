"""The mean of checkpoints against numpy in float64, and the checks of what has no mean."""

import re
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoints import flip_a_bit
from torch import Tensor

from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder, Retention
from lmtrain.checkpoint.snapshot import FORMAT_VERSION, STATE_KEYS, TrainState
from lmtrain.convert.chosen_checkpoints import ChosenCheckpoint
from lmtrain.convert.weight_average import WeightAverage, average, read_ingredient

MODEL = {"_target_": "lmtrain.model.llama.Llama", "n_head": 2, "dropout": 0.0}


def save(folder: Path, step: int, tensors: dict[str, Tensor], **changes: Any) -> ChosenCheckpoint:
    """Save a checkpoint as training does, with these tensors as the model."""
    state: dict[str, Any] = {key: {} for key in STATE_KEYS}
    state |= {"format_version": FORMAT_VERSION, "train": asdict(TrainState(step=step)), "config": {"model": MODEL}}
    unchecked = frozenset(f"model/{name}" for name in tensors)
    checkpoint = Checkpoint({"model": tensors}, {**state, **changes}, unchecked)
    CheckpointFolder.of_run(folder).save(step, checkpoint, Retention(newest=100))
    return ChosenCheckpoint(folder, step)


def average_of(chosen: Sequence[ChosenCheckpoint]) -> WeightAverage:
    return average([read_ingredient(each) for each in chosen])


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (0.5, 2.0, 1.25)])
def test_the_mean_is_that_of_float64(tmp_path: Path, weights: tuple[float, ...]) -> None:
    random = np.random.default_rng(0)
    # Large numbers that nearly cancel: a sum in float32 would lose most digits of their mean.
    values = [random.normal(sign * 1e6, 1, (7, 5)).astype(np.float32) for sign in (1, -1, 1e-3)]
    chosen = [
        ChosenCheckpoint(save(tmp_path, step, {"w": torch.from_numpy(value)}).run, step, weight)
        for step, (value, weight) in enumerate(zip(values, weights, strict=True), 1)
    ]
    exact = sum(w * value.astype(np.float64) for w, value in zip(weights, values, strict=True)) / sum(weights)
    found = average_of(chosen).weights["w"]
    assert found.dtype == torch.float32
    # float64 sums err by some 1e-16 of 1e6, far below half a unit in the last place of a float32 mean.
    assert torch.equal(found, torch.from_numpy(np.asarray(exact, np.float32)))


def test_the_mean_of_equal_weights_has_their_bits(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(100), "b": torch.randn(50, dtype=torch.bfloat16), "c": torch.full((2,), 1e-40)}
    chosen = [save(tmp_path, step, tensors) for step in (1, 2, 3)]
    found = average_of(chosen).weights
    assert all(torch.equal(found[name], value) and found[name].dtype == value.dtype for name, value in tensors.items())


def test_whole_numbers_are_those_of_the_newest_and_a_mask_stays(tmp_path: Path) -> None:
    mask = torch.tensor([0.0, -torch.inf])
    saved = {step: {"count": torch.tensor(step), "same": torch.tensor([7]), "mask": mask} for step in (5, 9, 7)}
    chosen = [save(tmp_path, step, tensors) for step, tensors in saved.items()]
    found = average_of(chosen)
    assert found.newest.chosen.step == 9
    assert found.weights["count"].item() == 9
    assert found.from_newest == ["count"]
    assert torch.equal(found.weights["mask"], mask)
    assert found.unchecked == {"mask"}


@pytest.mark.parametrize(
    ("other", "changes", "message"),
    [
        ({"w": torch.zeros(4, 3)}, {}, "other tensors than a step 1 (w: 4 × 4 float32 → 4 × 3 float32)"),
        (
            {"w": torch.zeros(4, 4, dtype=torch.bfloat16)},
            {},
            "other tensors than a step 1 (w: 4 × 4 float32 → 4 × 4 bfloat16)",
        ),
        (
            {"v": torch.zeros(4, 4)},
            {},
            "other tensors than a step 1 (w: 4 × 4 float32 → null, v: null → 4 × 4 float32)",
        ),
        (None, {"config": {"model": {**MODEL, "n_head": 4}}}, "not the model of a step 1 (n_head: 2 → 4)"),
        (None, {"format_version": 1}, "the checkpoint has format version 1, but this lmtrain reads 2"),
    ],
)
def test_what_has_no_mean(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    other: dict[str, Tensor] | None,
    changes: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    tensors = {"w": torch.zeros(4, 4)}
    chosen = [save(Path("a"), 1, tensors), save(Path("b"), 2, other or tensors, **changes)]
    with pytest.raises(ValueError, match=re.escape(message)):
        average_of(chosen)


def test_another_dropout_is_the_same_function(tmp_path: Path) -> None:
    one = save(tmp_path / "a", 1, {"w": torch.zeros(2)})
    two = save(tmp_path / "b", 1, {"w": torch.ones(2)}, config={"model": {**MODEL, "dropout": 0.1}})
    assert average_of([one, two]).weights["w"].tolist() == [0.5, 0.5]


def test_a_damaged_checkpoint_is_refused(tmp_path: Path) -> None:
    chosen = [save(tmp_path, step, {"w": torch.zeros(2)}) for step in (1, 2)]
    flip_a_bit(chosen[1].path / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"does not have the SHA-256 in MANIFEST\.json; choose the checkpoint of another"
    ):
        average_of(chosen)
