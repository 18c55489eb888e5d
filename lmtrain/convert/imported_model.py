"""A model from another program: its weights under lmtrain's names, and the settings with which a run has them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.convert.torch_file import size_text
from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.terminal.as_text import first_few

Value = bool | int | float | str | list[bool | int | float] | None
NUMBER_FORMATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class ImportedModel:
    """The weights of a model without the state of an optimizer; a run begins with them at step 0.

    Attributes:
        settings: Overrides: groups (`model`) and values (`model.n_layer`).
        weights: The tensors by their names here, in their own number formats.
        their_name: Returns the name that a tensor has in the files, for messages.
        tokenizer: The model's tokenizer, if it comes with one.
        record: What is kept in the run's `imported.json`: the files and their hashes.
    """

    settings: Mapping[str, Value]
    weights: Mapping[str, Tensor]
    their_name: Callable[[str], str] = str
    tokenizer: StoredTokenizer | None = None
    record: Mapping[str, Any] = field(default_factory=dict)


def check_fits(weights: Mapping[str, Tensor], model: nn.Module, their_name: Callable[[str], str] = str) -> None:
    """Raise ValueError, with the names in the files, unless these are the tensors of the model in its sizes.

    Their numbers must be floating-point and finite: integers are those of a quantised model, which need scales to mean
    anything, and infinite ones or NaN those of a model that has diverged.
    """
    expected = model.state_dict()
    found = {
        their_name(name) or name: weights[name]
        for name, tensor in expected.items()
        if name in weights and tensor.is_floating_point()
    }
    check_formats(found)  # first, as a quantised tensor often has another size, too
    problems = []
    if missing := [their_name(name) or name for name in expected if name not in weights]:
        problems.append(f"{first_few(missing)} missing")
    if unexpected := [their_name(name) or name for name in weights if name not in expected]:
        problems.append(f"{first_few(unexpected)} unexpected")
    if sizes := [
        f"{their_name(name) or name} is {size_text(weights[name])} instead of {size_text(tensor)}"
        for name, tensor in expected.items()
        if name in weights and weights[name].shape != tensor.shape
    ]:
        problems.append(first_few(sizes))
    if problems:
        raise ValueError(f"the weights do not fit the model: {'; '.join(problems)}")
    check_finite(found)


def check_formats(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError, with the name of a tensor, unless all have floating-point numbers."""
    if other := [name for name, tensor in tensors.items() if tensor.dtype not in NUMBER_FORMATS]:
        kind = str(tensors[other[0]].dtype).removeprefix("torch.")
        raise ValueError(f"{other[0]} has numbers of type {kind}; quantised models can't be imported")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError, with the name of a tensor, unless all numbers are finite in the float32 of a run."""
    if other := [name for name, tensor in tensors.items() if not bool(tensor.float().isfinite().all())]:
        raise ValueError(f"{first_few(other)}: numbers that are not finite; the model has diverged, or is damaged")
