"""Says which optimizers update each number by itself, so that processes can update parts of a tensor."""

from collections.abc import Mapping
from typing import Any

import torch

ALGORITHMS = ("adamw", "lion")  # of `GroupedOptimizer`
CLASSES = (
    *("torch.optim.adadelta.Adadelta", "torch.optim.adagrad.Adagrad", "torch.optim.adam.Adam"),
    *("torch.optim.adamax.Adamax", "torch.optim.adamw.AdamW", "torch.optim.asgd.ASGD", "torch.optim.nadam.NAdam"),
    *("torch.optim.radam.RAdam", "torch.optim.rmsprop.RMSprop", "torch.optim.rprop.Rprop", "torch.optim.sgd.SGD"),
    "schedulefree.adamw_schedulefree.AdamWScheduleFree",
)


def is_elementwise(optimizer: torch.optim.Optimizer, group: Mapping[str, Any]) -> bool:
    """Return whether the optimizer treats each number of a group's parameters by itself.

    It is so for AdamW and similar ones. A user's own optimizer says so by an attribute `elementwise = True`.
    """
    if (algorithm := group.get("algorithm")) is not None and hasattr(optimizer, "drop_other_states"):
        return algorithm in ALGORITHMS
    cls = type(optimizer)
    return bool(getattr(optimizer, "elementwise", False)) or f"{cls.__module__}.{cls.__qualname__}" in CLASSES
