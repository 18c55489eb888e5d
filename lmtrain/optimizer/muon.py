"""Muon and NorMuon: orthogonal updates for hidden matrices, and AdamW for all other parameters."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from lmtrain.optimizer.grouped import (
    GroupedOptimizer,
    State,
    adamw_update,
    decay_and_subtract,
    finite,
    move_towards,
)
from lmtrain.optimizer.parameter_groups import ParameterGroups, parameter_groups, with_decay
from lmtrain.optimizer.rules import Role

Beta = Annotated[float, Interval(ge=0, lt=1)]
Scale = Literal["match_adamw", "spectral"]
Precision = Literal["auto", "bfloat16", "float32"]

ALGORITHMS: Mapping[Role, str] = {"hidden": "muon", "embedding": "adamw", "output": "adamw", "vector": "adamw"}
# Jordan (2024) chose these so that small singular values grow fastest; the results are between 0.7 and 1.2, not 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
TINY = 1e-7  # added to a norm that is divided by
RMS_OF_ADAMW = 0.2  # the usual root mean square of AdamW's updates, as a share of the learning rate


def muon(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    momentum: Beta,
    nesterov: bool,
    iterations: PositiveInt,
    scale: Scale,
    precision: Precision,
    betas: tuple[Beta, Beta],
    eps: PositiveFloat,
    adamw_lr_scale: NonNegativeFloat,
    decay_follows_lr: bool = True,
    cautious_decay: bool = False,
    rules: list[dict[str, Any]] | None = None,
) -> GroupedOptimizer:
    """Return Muon for the hidden matrices, and AdamW for embeddings, the output layer, gains and biases.

    A hidden matrix moves along its momentum, of which all singular values are made about equal.

    Source: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024); the scale `match_adamw` and
    weight decay are from Liu et al., "Muon is Scalable for LLM Training" (2025), section 2.2.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Peak learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights of two or more dimensions by the learning rate times this.
        momentum: Share of the running mean of gradients that is kept in each step.
        nesterov: Move along a mean of the gradient and its running mean, instead of the running mean alone.
        iterations: Newton-Schulz iterations that make the singular values equal.
        scale: Size of an update. `match_adamw`: as large as AdamW's usually are, so that AdamW's learning rate fits.
            `spectral`: the square root of rows / columns where that is above 1, with a rate of about 0.02.
        precision: Number format of the iterations; `auto` is bfloat16 on a GPU and float32 on a CPU.
        betas: AdamW's decay rates of the running means of the gradient and of its square.
        eps: AdamW's number against division by zero.
        adamw_lr_scale: Learning rate of AdamW's parameters, as a factor of `lr`.
        decay_follows_lr: Use the scheduled learning rate for weight decay; otherwise always the peak.
        cautious_decay: Shrink a weight only where its update also moves it towards zero.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.
    """
    own = {"momentum": momentum, "nesterov": nesterov, "iterations": iterations, "scale": scale, "precision": precision}
    groups = _groups(named_parameters, weight_decay, own, {"betas": betas, "eps": eps}, adamw_lr_scale, rules or ())
    groups = with_decay(groups, follows_lr=decay_follows_lr, cautious=cautious_decay)
    return GroupedOptimizer(groups, {"muon": muon_update, "adamw": adamw_update}, lr)


def normuon(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    momentum: Beta,
    nesterov: bool,
    iterations: PositiveInt,
    precision: Precision,
    row_beta: Beta,
    betas: tuple[Beta, Beta],
    eps: PositiveFloat,
    adamw_lr_scale: NonNegativeFloat,
    decay_follows_lr: bool = True,
    cautious_decay: bool = False,
    rules: list[dict[str, Any]] | None = None,
) -> GroupedOptimizer:
    """Return NorMuon for the hidden matrices, and AdamW for all other parameters.

    As Muon, but the rows of an update (the weights of one neuron) are divided by a running mean of their size, so that
    no neuron moves much more than the others.

    Source: Li et al., "NorMuon: Making Muon more efficient and scalable" (2025), algorithm 1.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Peak learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights of two or more dimensions by the learning rate times this.
        momentum: Share of the running mean of gradients that is kept in each step.
        nesterov: Move along a mean of the gradient and its running mean, instead of the running mean alone.
        iterations: Newton-Schulz iterations that make the singular values equal.
        precision: Number format of the iterations; `auto` is bfloat16 on a GPU and float32 on a CPU.
        row_beta: Share of the running mean of the squares of a row that is kept in each step.
        betas: AdamW's decay rates of the running means of the gradient and of its square.
        eps: Number against division by zero, for AdamW and for the rows.
        adamw_lr_scale: Learning rate of AdamW's parameters, as a factor of `lr`.
        decay_follows_lr: Use the scheduled learning rate for weight decay; otherwise always the peak.
        cautious_decay: Shrink a weight only where its update also moves it towards zero.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.
    """
    own: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov, "iterations": iterations, "precision": precision}
    own |= {"scale": "match_adamw", "row_beta": row_beta, "eps": eps}
    groups = _groups(named_parameters, weight_decay, own, {"betas": betas, "eps": eps}, adamw_lr_scale, rules or ())
    groups = with_decay(groups, follows_lr=decay_follows_lr, cautious=cautious_decay)
    return GroupedOptimizer(groups, {"muon": muon_update, "adamw": adamw_update}, lr)


def _groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    weight_decay: float,
    own: Mapping[str, Any],
    adamw: Mapping[str, Any],
    adamw_lr_scale: float,
    rules: Sequence[Mapping[str, Any]],
) -> ParameterGroups:
    """Return the parameter groups with the values of their algorithms."""
    groups = parameter_groups(named_parameters, weight_decay, rules, ALGORITHMS, {"adamw": adamw_lr_scale})
    if any(group["algorithm"] == "muon" and param.ndim < 2 for group in groups for param in group["params"]):
        raise ValueError("optimizer.rules: algorithm=muon needs matrices, but a rule names parameters that are none")
    return [{**group, **(own if group["algorithm"] == "muon" else adamw)} for group in groups]


def muon_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[State],
    group: Mapping[str, Any],
    found_inf: Tensor | None,
) -> None:
    """Update by Muon, or by NorMuon if the group has a `row_beta`; the last two dimensions of a tensor are a matrix."""
    row_beta = group.get("row_beta")
    for param, state in zip(params, states, strict=True):
        if not state:
            state["momentum"] = torch.zeros_like(param)
            if row_beta is not None:
                state["row_squares"] = param.new_zeros((*param.shape[:-1], 1))
    grads, share = finite(grads, found_inf)
    means = [state["momentum"] for state in states]
    move_towards(means, grads, (1 - group["momentum"]) * share)
    directions = means
    if group["nesterov"]:
        directions = list(torch._foreach_mul(means, group["momentum"]))
        torch._foreach_add_(directions, torch._foreach_mul(grads, 1 - group["momentum"]))
    updates = orthogonal_all(directions, group["iterations"], group["precision"])
    if row_beta is None:
        factors = [update_size(param.shape, group["scale"]) for param in params]
        updates = list(torch._foreach_mul(updates, factors))
    else:
        squares = [state["row_squares"] for state in states]
        move_towards(squares, [update.square().mean(-1, keepdim=True) for update in updates], (1 - row_beta) * share)
        updates = [update / (square.sqrt() + group["eps"]) for update, square in zip(updates, squares, strict=True)]
        updates = [update * (RMS_OF_ADAMW / root_mean_square(update)) for update in updates]
    decay_and_subtract(params, updates, group, share)


def orthogonal_all(matrices: Sequence[Tensor], iterations: int, precision: Precision) -> list[Tensor]:
    """Return `orthogonal` of each matrix; those of the same shape are computed together."""
    by_shape: dict[tuple[torch.Size, torch.device], list[int]] = defaultdict(list)
    for at, matrix in enumerate(matrices):
        by_shape[matrix.shape, matrix.device].append(at)
    found: dict[int, Tensor] = {}
    for indices in by_shape.values():
        together = torch.stack([matrices[at] for at in indices])
        results = orthogonal(together, iterations, _dtype(together, precision)).to(together.dtype)
        found.update(zip(indices, results.unbind(), strict=True))
    return [found[at] for at in range(len(matrices))]


def orthogonal(matrices: Tensor, iterations: int, dtype: torch.dtype) -> Tensor:
    """Return matrices (..., m, n) with about the same singular vectors, and all singular values near 1.

    Source: Jordan et al. (2024), the quintic Newton-Schulz iteration.
    """
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices  # the product of the shorter side with itself is smaller
    shape = x.shape
    x = x.reshape(-1, *shape[-2:]).to(dtype)
    x = x / (torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True) + TINY)
    a, b, c = COEFFICIENTS
    for _ in range(iterations):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    x = x.reshape(shape)
    return x.mT if tall else x


def _dtype(matrices: Tensor, precision: Precision) -> torch.dtype:
    """Return the number format of the iterations."""
    if precision == "bfloat16" or (precision == "auto" and matrices.device.type == "cuda"):
        return torch.bfloat16
    return torch.promote_types(matrices.dtype, torch.float32)


def root_mean_square(matrices: Tensor) -> Tensor:
    """Return the root mean square of each matrix (..., m, n), as (..., 1, 1)."""
    return matrices.square().mean((-2, -1), keepdim=True).sqrt() + TINY


def update_size(shape: Sequence[int], scale: Scale) -> float:
    """Return the factor of an orthogonal update of this shape (..., m, n)."""
    rows, columns = shape[-2:]
    return RMS_OF_ADAMW * math.sqrt(max(rows, columns)) if scale == "match_adamw" else math.sqrt(max(1, rows / columns))
