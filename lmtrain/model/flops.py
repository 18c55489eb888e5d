"""FLOPs of training by any model, also a user's own. The architectures count theirs in a method of the same name."""

from collections.abc import Callable

from torch import nn


def flops_per_token(model: nn.Module, block_size: int) -> int:
    """Return the model's own count, or else 6 FLOPs a parameter (Kaplan et al. 2020, section 2.1)."""
    count: Callable[[int], int] | None = getattr(model, "flops_per_token", None)
    return count(block_size) if count else 6 * sum(param.numel() for param in model.parameters())
