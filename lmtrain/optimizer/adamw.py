"""AdamW: Adam with decoupled weight decay."""

from collections.abc import Iterable
from typing import Annotated

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat

from lmtrain.optimizer.parameter_groups import can_fuse, decay_groups

Beta = Annotated[float, Interval(ge=0, lt=1)]


def adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    eps: PositiveFloat,
) -> torch.optim.AdamW:
    """Return AdamW with decay of the tensors of two or more dimensions alone.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.
    """
    groups = decay_groups(named_parameters, weight_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=can_fuse(groups))
