"""The arithmetic of a training step."""

from collections.abc import Callable

from torch import nn


def flops_per_token(model: nn.Module, block_size: int) -> int:
    """What the model says of itself, else 6 FLOPs a parameter (Kaplan et al. 2020, section 2.1)."""
    count: Callable[[int], int] | None = getattr(model, "flops_per_token", None)
    return count(block_size) if count else 6 * sum(param.numel() for param in model.parameters())
