"""The parts that compute a run."""

from dataclasses import dataclass

import torch
from torch import nn

from lmtrain.data.loader import TokenLoader
from lmtrain.scheduler import Schedule
from lmtrain.system import System


@dataclass(frozen=True)
class Parts:
    """What computes a run, in the order that data flows; `parts.build_parts` builds it from a config."""

    system: System
    train_loader: TokenLoader
    val_loader: TokenLoader
    model: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: Schedule
