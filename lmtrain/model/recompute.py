"""Saves memory by computing activations again in the backward instead of keeping them (Chen et al. 2016)."""

from collections.abc import Callable, Iterable
from typing import Literal

import torch
from torch import Tensor, nn

RecomputeKind = Literal["none", "attention", "layer"]


class Recompute:
    """Decides which parts of a model are computed again in the backward. Losses and gradients keep their bits.

    Args:
        what: `layer` keeps only the inputs of each layer. `attention` keeps the activations of the MLPs and computes
            those of attention again. `none` keeps everything.
        has_dropout: The same elements must be dropped again, so the state of the random generators is kept as well.
    """

    def __init__(self, what: RecomputeKind, has_dropout: bool) -> None:
        self.what, self.has_dropout = what, has_dropout

    def layer(self, function: Callable[..., Tensor], *inputs: object) -> Tensor:
        """Call a whole layer."""
        return self._call(function, inputs, again=self.what == "layer")

    def attention(self, function: Callable[..., Tensor], *inputs: object) -> Tensor:
        """Call the attention of a layer, with its norm and projections."""
        return self._call(function, inputs, again=self.what == "attention")

    def _call(self, function: Callable[..., Tensor], inputs: tuple[object, ...], again: bool) -> Tensor:
        if not again or not torch.is_grad_enabled():
            return function(*inputs)
        from torch.utils.checkpoint import checkpoint

        out: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=self.has_dropout)
        return out

    def flops_per_token(self, layers: Iterable[nn.Module], d_model: int, block_size: int) -> int:
        """Return the FLOPs per token that the backward computes again; a model's own count leaves them out."""
        if self.what == "none":
            return 0
        flops = 0
        for layer in layers:
            part = layer if self.what == "layer" else layer.get_submodule("attention")
            *products, last = (param.numel() for param in part.parameters() if param.ndim >= 2)
            flops += 2 * sum(products) + 4 * d_model * block_size  # with scores and weighted values
            if self.what == "layer" and self.has_dropout:
                flops += 2 * last  # else nothing depends on the last product, and torch stops before it
        return flops
