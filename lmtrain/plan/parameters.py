"""Describes a model's parameters: by part, for any architecture, and by the groups of an optimizer."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from hydra.errors import InstantiationException
from torch import nn

from lmtrain.optimizer.group_table import GroupRow, group_rows


@dataclass(frozen=True)
class ParameterPlace:
    """The place of a parameter in a model: the names and modules from the model down to the parameter's module."""

    names: tuple[str, ...]
    modules: tuple[nn.Module, ...]
    rows: int  # the first dimension of the parameter
    vocab_size: int | None

    def called(self, *words: str) -> bool:
        texts = [*self.names, *(type(module).__name__ for module in self.modules[1:])]
        return any(word in text.lower() for text in texts for word in words)


# The first match counts; without a match, the part is the name of the model's child module.
PARTS: Mapping[str, Callable[[ParameterPlace], bool]] = {
    "embedding": lambda place: isinstance(place.modules[-1], nn.Embedding),
    "norms": lambda place: "norm" in type(place.modules[-1]).__name__.lower(),
    "head": lambda place: len(place.names) == 1 and place.rows == place.vocab_size,
    "attention": lambda place: place.called("attn", "attention"),
    "mlp": lambda place: place.called("mlp", "ffn", "feedforward", "feed_forward", "experts", "swiglu"),
}


def parameters_by_part(model: nn.Module, vocab_size: int | None) -> dict[str, int]:
    """Return the number of parameters of each part, by the classes and names of modules.

    A shared parameter counts once, in the first part that uses it.
    """
    counts: Counter[str] = Counter()
    modules = dict(model.named_modules())
    for path, param in model.named_parameters():
        names = tuple(path.split(".")[:-1])
        owners = tuple(modules[".".join(names[:depth])] for depth in range(len(names) + 1))
        place = ParameterPlace(names, owners, param.shape[0] if param.ndim else 1, vocab_size)
        own_name = names[0] if names else path
        counts[next((part for part, is_one in PARTS.items() if is_one(place)), own_name)] += param.numel()
    return dict(counts)


def groups_of(build_optimizer: Callable[[], torch.optim.Optimizer], model: nn.Module) -> list[GroupRow] | None:
    """Return the parameter groups of an optimizer, or None if it cannot be built for a model without data."""
    try:
        return group_rows(build_optimizer(), model.named_parameters())
    except (ValueError, OSError, InstantiationException):  # a mistake in the config
        raise
    except Exception:  # a user's optimizer may need real data, and raise anything without it
        return None


def has_learned_positions(model: nn.Module) -> bool:
    """Return whether an embedding has a row for each position."""
    model_block_size = getattr(model, "block_size", None)
    return any(
        isinstance(module, nn.Embedding) and "pos" in name.lower() and module.num_embeddings == model_block_size
        for name, module in model.named_modules()
    )
