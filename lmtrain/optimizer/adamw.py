"""Optimizers: each takes the model's named parameters and returns a `torch.optim.Optimizer`."""

import logging
from collections.abc import Iterable
from typing import Annotated

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat

log = logging.getLogger(__name__)

FUSED_DEVICES = ("cuda", "cpu")  # where one kernel updates all parameters


Beta = Annotated[float, Interval(ge=0, lt=1)]


def adamw(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    eps: PositiveFloat,
) -> torch.optim.AdamW:
    """AdamW with decoupled decay of the tensors of two or more dimensions alone: matrices and embeddings.

    Norm gains and biases set a scale; pulling them to zero only fights the loss.
    Source: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.
    """
    params = [param for _, param in named_parameters if param.requires_grad]
    decayed = [param for param in params if param.ndim >= 2]
    undecayed = [param for param in params if param.ndim < 2]
    log.info(
        "%d tensors decayed (%s params), %d not decayed (%s params)",
        len(decayed),
        f"{sum(param.numel() for param in decayed):,}",
        len(undecayed),
        f"{sum(param.numel() for param in undecayed):,}",
    )
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": undecayed, "weight_decay": 0.0}]
    fused = all(param.device.type in FUSED_DEVICES for param in params)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=lr, betas=betas, eps=eps, fused=fused)
