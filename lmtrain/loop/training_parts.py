"""The parts that a training run is made of."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from lmtrain.data.loader import TokenLoader
from lmtrain.parallel.base import Parallel
from lmtrain.scheduler import Schedule
from lmtrain.system import System


@dataclass(frozen=True)
class Parts:
    """Holds the parts of a run, in the order that data flows; `parts.build_parts` builds them from a config.

    `updated` has the parameters that the optimizer of this process updates, by name. They are those
    of the model, unless the processes share it.
    """

    system: System
    train_loader: TokenLoader
    val_loader: TokenLoader
    model: nn.Module
    optimizer: torch.optim.Optimizer
    updated: Mapping[str, nn.Parameter]
    schedule: Schedule
    parallel: Parallel = field(default_factory=Parallel)
