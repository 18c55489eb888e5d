"""Training FLOPs of any model. The shipped architectures count theirs in a method `flops_per_token`."""

from collections.abc import Callable

from torch import nn


def flops_per_token(model: nn.Module, block_size: int) -> int:
    """Return the FLOPs of forward and backward per token.

    If the model does not count them itself, they are 6 per parameter (Kaplan et al. 2020, section 2.1).
    """
    count: Callable[[int], int] | None = getattr(model, "flops_per_token", None)
    return count(block_size) if count else 6 * sum(param.numel() for param in model.parameters())


def recomputed_flops_per_token(model: nn.Module, block_size: int) -> int:
    """Return the FLOPs per token that the backward computes again to save memory; 0 if the model does not say."""
    count: Callable[[int], int] | None = getattr(model, "recomputed_flops_per_token", None)
    return count(block_size) if count else 0
