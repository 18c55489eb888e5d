"""Computes the mean of the weights of checkpoints, in float64 and tensor by tensor.

Sources: Izmailov et al., "Averaging Weights Leads to Wider Optima and Better Generalization" (2018), for checkpoints of
one run at a constant or cyclic learning rate; Wortsman et al., "Model Soups" (2022), for runs that share their
beginning; Kaddour, "Stop Wasting My Time! Saving Days of ImageNet and BERT Training with Latest Weight Averaging"
(2022), for the last few checkpoints of a run that still trains.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lmtrain.checkpoint.files import MANIFEST, MODEL, STATE, STATE_BYTES, Checkpoint, open_tensors, verify_checkpoint
from lmtrain.checkpoint.joined import dtype_of, shape_of, split_name
from lmtrain.checkpoint.snapshot import TrainState, train_state
from lmtrain.convert.chosen_checkpoints import ChosenCheckpoint
from lmtrain.errors import BrokenCheckpointError
from lmtrain.files.limited import read_json, read_json_limited
from lmtrain.terminal.as_text import differences, first_few

# Options of a model that change how it is trained or computed, but not what its weights mean.
SAME_FUNCTION = frozenset(
    {"dropout", "init_std", "attention", "recompute", "z_loss", "balance_loss", "router_z_loss", "bias_rate"}
)


@dataclass(frozen=True)
class Ingredient:
    """A verified checkpoint of an average.

    Attributes:
        chosen: The checkpoint and its weight.
        state: The content of its `state.json`.
        train: The training state in it.
        sha256: The hash of its file of weights, from its manifest.
    """

    chosen: ChosenCheckpoint
    state: Mapping[str, Any]
    train: TrainState
    sha256: str

    @property
    def record(self) -> dict[str, Any]:
        """The entry of `environment.json` about this checkpoint."""
        return {
            "run": str(self.chosen.run.resolve()),
            "run_id": self.state.get("run_id"),
            "step": self.chosen.step,
            "weight": self.chosen.weight,
            "sha256": self.sha256,
        }

    @property
    def line_of_runs(self) -> set[str]:
        """The ids of the run, of the run that it was forked from, and so on."""
        found: set[str] = set()
        origin: Any = self.state
        while isinstance(origin, dict) and isinstance(run_id := origin.get("run_id"), str) and run_id not in found:
            found.add(run_id)
            origin = origin.get("forked_from")
        return found


@dataclass(frozen=True)
class WeightAverage:
    """The mean of the weights of checkpoints.

    Attributes:
        weights: The mean, by the names and in the dtypes of the checkpoints.
        newest: The ingredient of the most steps (the first of several), which everything but the weights comes from.
        unchecked: The names of tensors that may contain numbers that are not finite, as those of an ingredient did.
        from_newest: The names of tensors of whole numbers that differ, and are those of the newest.
    """

    weights: Mapping[str, Tensor]
    newest: Ingredient
    unchecked: frozenset[str]
    from_newest: Sequence[str]


def read_ingredient(chosen: ChosenCheckpoint) -> Ingredient:
    """Verify a checkpoint by its manifest and return what an average records of it.

    Raises:
        ValueError: the checkpoint is broken, or has no weights.
    """
    try:
        verify_checkpoint(chosen.path)
    except BrokenCheckpointError as error:
        raise ValueError(f"{chosen.path}: {error}; choose the checkpoint of another step") from error
    state = read_json_limited(chosen.path / STATE, STATE_BYTES)
    manifest = read_json(chosen.path / MANIFEST)
    hashes = [manifest[name]["sha256"] for name in sorted(manifest) if split_name(name)[0] == MODEL]
    if not hashes:
        raise ValueError(f"{chosen.path}: has no weights of a model")
    try:
        train = train_state(Checkpoint({}, state))
    except ValueError as error:
        raise ValueError(f"{chosen.path}: {error}") from error
    of_all_parts = hashlib.sha256("".join(hashes).encode()).hexdigest()
    return Ingredient(chosen, state, train, hashes[0] if len(hashes) == 1 else of_all_parts)


def average(ingredients: Sequence[Ingredient]) -> WeightAverage:
    """Return the mean of the weights, Σ wᵢ xᵢ / Σ wᵢ, summed in float64 in the order of the ingredients.

    Tensors of whole numbers or truth values, such as counters, have no mean: they are those of the newest ingredient.

    Raises:
        ValueError: two ingredients have other tensors, shapes or dtypes, or a model of other settings.
    """
    first, *others = ingredients
    for other in others:
        _check_same_model(first, other)
    newest = max(ingredients, key=lambda each: each.train.step)
    weights: dict[str, Tensor] = {}
    unchecked, from_newest = set(), []
    files = [_open(each) for each in ingredients]
    _check_same_tensors(ingredients, files)
    for name in sorted(files[0]):
        values = [file[name] for file in files]
        if values[0].is_floating_point():
            weights[name] = _mean(values, [each.chosen.weight for each in ingredients])
            if not all(value.isfinite().all() for value in values):
                unchecked.add(name)
        else:
            weights[name] = values[ingredients.index(newest)]
            if any(not torch.equal(value, values[0]) for value in values):
                from_newest.append(name)
    return WeightAverage(weights, newest, frozenset(unchecked), from_newest)


def _mean(values: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    total = torch.zeros_like(values[0], dtype=torch.float64)
    for value, weight in zip(values, weights, strict=True):
        total += weight * value.double()
    return (total / sum(weights)).to(values[0].dtype)


def _open(ingredient: Ingredient) -> Mapping[str, Tensor]:
    try:
        return open_tensors(ingredient.chosen.path)[MODEL]
    except BrokenCheckpointError as error:  # its hash is right, so another program wrote it
        raise ValueError(f"{ingredient.chosen.path}: {error}") from error


def _check_same_model(first: Ingredient, other: Ingredient) -> None:
    """Check that the config of the model is the same: with other heads, equal shapes mean something else."""
    one, two = (_model_config(each.state) for each in (first, other))
    if found := differences(one, two):
        raise ValueError(
            f"{other.chosen}: not the model of {first.chosen} ({first_few(found)}); only checkpoints of one "
            "architecture have a mean"
        )


def _model_config(state: Mapping[str, Any]) -> dict[str, Any]:
    config = state.get("config")
    model = config.get("model") if isinstance(config, dict) else None
    return _without_same_function(model) if isinstance(model, dict) else {}


def _without_same_function(node: Mapping[str, Any]) -> dict[str, Any]:
    """Return a node of a config without the keys of `SAME_FUNCTION`, also in the nodes below it."""
    return {
        key: _without_same_function(value) if isinstance(value, dict) else value
        for key, value in node.items()
        if key not in SAME_FUNCTION
    }


def _check_same_tensors(ingredients: Sequence[Ingredient], files: Sequence[Mapping[str, Tensor]]) -> None:
    first = _tensors_of(files[0])
    for ingredient, file in zip(ingredients[1:], files[1:], strict=True):
        if found := differences(first, _tensors_of(file)):
            raise ValueError(
                f"{ingredient.chosen}: other tensors than {ingredients[0].chosen} ({first_few(found)}); only "
                "checkpoints of one architecture have a mean"
            )


def _tensors_of(file: Mapping[str, Tensor]) -> dict[str, str]:
    """Return shape and dtype of each tensor, in words."""
    return {
        name: f"{' × '.join(map(str, shape_of(file, name)))} {str(dtype_of(file, name)).removeprefix('torch.')}"
        for name in file
    }
