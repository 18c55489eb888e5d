"""Training FLOPs of any model. The shipped architectures count theirs in a method `flops_per_token`."""

from collections.abc import Callable

import torch
from torch import nn

from lmtrain.torch_internals import fake_tensors


def matrix_parameters(module: nn.Module) -> int:
    """Return the parameters of the matrices with which every token is multiplied; embeddings are only looked up.

    If only a part of a module's parameters works on a token, the module counts them in a method of this name.
    """
    count: Callable[[], int] | None = getattr(module, "matrix_parameters", None)
    if count:
        return count()
    own = 0 if isinstance(module, nn.Embedding) else sum(p.numel() for p in module.parameters(False) if p.ndim >= 2)
    return own + sum(matrix_parameters(child) for child in module.children())


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


def count_flops(build: Callable[[], nn.Module], batch_size: int, block_size: int) -> float:
    """Return the FLOPs per token of forward and backward, for models that do not count their own.

    Only matrix products count, without recomputation; attention counts as if it were not causal.

    Raises:
        Exception: any error of the model, if it reads data or uses an operation without shape rules.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel  # all of these imports would slow down the start of a run
    from torch.utils.flop_counter import FlopCounterMode

    with torch.random.fork_rng(devices=[]), fake_tensors(), sdpa_kernel(SDPBackend.MATH):
        model = build()
        x = torch.zeros((batch_size, block_size), dtype=torch.int64)
        with FlopCounterMode(display=False) as counter:
            model(x, x)[1].backward()
    return float(counter.get_total_flops() / x.numel())
