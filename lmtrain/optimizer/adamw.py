"""AdamW: Adam with decoupled weight decay."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat

from lmtrain.optimizer.parameter_groups import can_fuse, parameter_groups

Beta = Annotated[float, Interval(ge=0, lt=1)]


def adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    eps: PositiveFloat,
    rules: list[dict[str, Any]] | None = None,
) -> torch.optim.AdamW:
    """Return an AdamW optimizer that decays only tensors of two or more dimensions.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Peak learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights by the learning rate times this.
        betas: Decay rates of the running means of the gradient and of its square.
        eps: Added to the denominator, against division by zero.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.
    """
    groups = parameter_groups(named_parameters, weight_decay, rules or ())
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=can_fuse(groups))
