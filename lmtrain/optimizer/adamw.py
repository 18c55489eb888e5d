"""AdamW: Adam with decoupled weight decay."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat

from lmtrain.optimizer.grouped import GroupedOptimizer, adamw_update
from lmtrain.optimizer.parameter_groups import can_fuse, one_algorithm, parameter_groups, with_decay

Beta = Annotated[float, Interval(ge=0, lt=1)]


def adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    eps: NonNegativeFloat,
    eps_root: NonNegativeFloat = 0.0,
    decay_follows_lr: bool = True,
    cautious_decay: bool = False,
    rules: list[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """Return an AdamW optimizer that decays only tensors of two or more dimensions.

    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2; cautious decay
    is from Chen et al., "Cautious Weight Decay" (2025), algorithm 1. `eps_root` is that of optax and MaxText.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Peak learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights by the learning rate times this.
        betas: Decay rates of the running means of the gradient and of its square.
        eps: Added to the root of the mean square, against division by zero.
        eps_root: Added to the mean square, under its root: epsilon "inside" the root. The update is the mean divided by
            `sqrt(mean square + eps_root) + eps`; one of the two must not be 0.
        decay_follows_lr: Use the scheduled learning rate for weight decay; otherwise always the peak.
        cautious_decay: Shrink a weight only where its update also moves it towards zero.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.
    """
    if not eps and not eps_root:
        raise ValueError("optimizer.eps=0: needs optimizer.eps_root above 0, or weights without gradient become NaN")
    if eps_root or cautious_decay:  # torch has no kernel for them
        groups = parameter_groups(named_parameters, weight_decay, rules or (), one_algorithm("adamw"))
        groups = with_decay(groups, follows_lr=decay_follows_lr, cautious=cautious_decay)
        own = {"betas": betas, "eps": eps, "eps_root": eps_root}
        return GroupedOptimizer([{**group, **own} for group in groups], {"adamw": adamw_update}, lr)
    groups = with_decay(parameter_groups(named_parameters, weight_decay, rules or ()), follows_lr=decay_follows_lr)
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=eps, fused=can_fuse(groups))
