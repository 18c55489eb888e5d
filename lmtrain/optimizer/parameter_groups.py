"""Parameter groups for every optimizer: which parameters decay, and whether one fused kernel can update them all."""

import logging
from collections.abc import Iterable
from typing import Any

import torch

log = logging.getLogger(__name__)

FUSED_DEVICES = ("cuda", "cpu")  # devices for which torch has a kernel that updates all parameters at once

ParameterGroups = list[dict[str, Any]]


def decay_groups(named_parameters: Iterable[tuple[str, torch.nn.Parameter]], weight_decay: float) -> ParameterGroups:
    """Return parameter groups in which only tensors of two or more dimensions decay: matrices and embeddings.

    Norm gains and biases set a scale, and pulling them to zero only works against the loss. Frozen parameters are in no
    group, and a group without parameters is left out.
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
    return [group for group in groups if group["params"]]


def can_fuse(groups: ParameterGroups) -> bool:
    """Return whether `fused=True` of torch's optimizers works for all these parameters."""
    return all(param.device.type in FUSED_DEVICES for group in groups for param in group["params"])
