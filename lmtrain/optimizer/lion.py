"""Lion: the sign of a running mean of the gradient."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from lmtrain.optimizer.grouped import GroupedOptimizer, State, decay_and_subtract, finite, move_towards
from lmtrain.optimizer.parameter_groups import one_algorithm, parameter_groups, with_decay

Beta = Annotated[float, Interval(ge=0, lt=1)]


def lion(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    decay_follows_lr: bool = True,
    cautious_decay: bool = False,
    rules: list[dict[str, Any]] | None = None,
) -> GroupedOptimizer:
    """Return a Lion optimizer, which keeps one running mean per parameter: half the state of AdamW.

    Every weight moves by the learning rate in each step, so the rate is usually three to ten times smaller than that
    of AdamW, and the weight decay as many times larger.

    Source: Chen et al., "Symbolic Discovery of Optimization Algorithms" (2023), algorithm 2.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Peak learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights by the learning rate times this.
        betas: Share of the running mean in the update, and the share of it that is kept for the next step.
        decay_follows_lr: Use the scheduled learning rate for weight decay; otherwise always the peak.
        cautious_decay: Shrink a weight only where its update also moves it towards zero.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.
    """
    groups = parameter_groups(named_parameters, weight_decay, rules or (), one_algorithm("lion"))
    groups = with_decay(groups, follows_lr=decay_follows_lr, cautious=cautious_decay)
    return GroupedOptimizer([{**group, "betas": betas} for group in groups], {"lion": lion_update}, lr)


def lion_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[State],
    group: Mapping[str, Any],
    found_inf: Tensor | None,
) -> None:
    """Update by Lion; the group has `betas`, `weight_decay` and `lr`."""
    for param, state in zip(params, states, strict=True):
        if not state:
            state["exp_avg"] = torch.zeros_like(param)
    means, (beta1, beta2) = [state["exp_avg"] for state in states], group["betas"]
    grads, share = finite(grads, found_inf)
    updates = torch._foreach_mul(means, beta1)
    torch._foreach_add_(updates, torch._foreach_mul(grads, 1 - beta1))
    torch._foreach_sign_(updates)
    decay_and_subtract(params, updates, group, share)
    move_towards(means, grads, (1 - beta2) * share)
