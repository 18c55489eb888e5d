"""Adafactor: instead of the mean square of every gradient, only that of the rows and columns of a matrix."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import Tensor

from lmtrain.optimizer.grouped import GroupedOptimizer, State, finite
from lmtrain.optimizer.parameter_groups import one_algorithm, parameter_groups


def adafactor(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    beta2_decay: PositiveFloat,
    clip: PositiveFloat,
    least_rms: PositiveFloat,
    eps: PositiveFloat,
    rules: list[dict[str, Any]] | None = None,
) -> GroupedOptimizer:
    """Return Adafactor, whose state is hardly larger than nothing: a row and a column for each matrix.

    Every update is relative to the size of its tensor. A step moves a tensor by about the learning rate times its root
    mean square, but by no more than 1 / sqrt(step) times.

    Source: Shazeer and Stern, "Adafactor: Adaptive Learning Rates with Sublinear Memory Cost" (2018), algorithms 4 and
    5, in the form of `torch.optim.Adafactor`.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Peak learning rate, relative to the size of a tensor; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights by the learning rate times this.
        beta2_decay: The running means keep `1 - step ** -beta2_decay`.
        clip: Largest root mean square of an update before it is multiplied by the learning rate.
        least_rms: Tensors that are smaller than this count as large as this, so that they can grow.
        eps: Least value of the estimated root mean square of a gradient.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.
    """
    groups = parameter_groups(named_parameters, weight_decay, rules or (), one_algorithm("adafactor"))
    own = {"beta2_decay": beta2_decay, "clip": clip, "least_rms": least_rms, "eps": eps}
    return GroupedOptimizer([{**group, **own} for group in groups], {"adafactor": adafactor_update}, lr)


def adafactor_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[State],
    group: Mapping[str, Any],
    found_inf: Tensor | None,
) -> None:
    """Update by Adafactor; the last two dimensions of a tensor are a matrix."""
    grads, share = finite(grads, found_inf)
    for param, grad, state in zip(params, grads, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.promote_types(param.dtype, torch.float32), device=param.device)
            if param.ndim >= 2:
                state["row_squares"] = param.new_zeros((*param.shape[:-1], 1))
                state["column_squares"] = param.new_zeros((*param.shape[:-2], 1, param.shape[-1]))
            else:
                state["squares"] = torch.zeros_like(param)
        state["step"] += share
        step = state["step"].clamp(min=1)  # a bad first step must not divide by zero
        new = (step ** -group["beta2_decay"] * share).to(param.dtype)
        if param.ndim >= 2:
            rows = state["row_squares"].lerp_(grad.square().mean(-1, keepdim=True), new)
            columns = state["column_squares"].lerp_(grad.square().mean(-2, keepdim=True), new)
            squares = rows @ columns / rows.mean(-2, keepdim=True).clamp(min=group["eps"])
        else:
            squares = state["squares"].lerp_(grad.square(), new)
        update = grad * squares.clamp(min=group["eps"] ** 2).rsqrt()
        clipped = root_mean_square(update).div(group["clip"]).clamp(min=1)
        size = root_mean_square(param).clamp(min=group["least_rms"])
        rate = step.rsqrt().clamp(max=group["lr"]) * share
        if group["weight_decay"]:
            param.mul_(1 - group["lr"] * group["weight_decay"] * share)
        param.sub_(update * (size * rate / clipped).to(param.dtype))


def root_mean_square(values: Tensor) -> Tensor:
    """Return the root mean square of all values, a scalar."""
    found: Tensor = torch.linalg.vector_norm(values) / values.numel() ** 0.5
    return found
