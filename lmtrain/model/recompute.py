"""Saves memory by computing activations again in the backward instead of keeping them (Chen et al. 2016)."""

from collections.abc import Callable, Iterable
from typing import Literal, TypeVar

import torch
from torch import nn

from lmtrain.model.flops import matrix_parameters

RecomputeKind = Literal["none", "attention", "layer"]
Result = TypeVar("Result")


class Recompute:
    """Decides which parts of a model are computed again in the backward. Losses and gradients keep their bits.

    Args:
        what: `layer` keeps only the inputs of each layer. `attention` keeps the activations of the MLPs and computes
            those of attention again. `none` keeps everything.
        has_dropout: The same elements must be dropped again, so the state of the random generators is kept as well.
    """

    def __init__(self, what: RecomputeKind, has_dropout: bool) -> None:
        self.what, self.has_dropout = what, has_dropout

    def layer(self, function: Callable[..., Result], *inputs: object) -> Result:
        """Call a whole layer."""
        return self._call(function, inputs, again=self.what == "layer")

    def attention(self, function: Callable[..., Result], *inputs: object) -> Result:
        """Call the attention of a layer, with its norm and projections."""
        return self._call(function, inputs, again=self.what == "attention")

    def _call(self, function: Callable[..., Result], inputs: tuple[object, ...], again: bool) -> Result:
        if not again or not torch.is_grad_enabled():
            return function(*inputs)
        from torch.utils.checkpoint import checkpoint

        out: Result = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=self.has_dropout)
        return out

    def flops_per_token(self, layers: Iterable[nn.Module], attention: int) -> int:
        """Return the FLOPs per token that the backward computes again; a model's own count leaves them out.

        Args:
            layers: The layers of the model.
            attention: FLOPs per token of the scores and the weighted values of all layers.
        """
        if self.what == "none":
            return 0
        flops = attention
        for layer in layers:
            part = layer if self.what == "layer" else layer.get_submodule("attention")
            flops += 2 * matrix_parameters(part)
            if self.what == "attention" or not self.has_dropout:
                flops -= 2 * _last_matrix(part)  # nothing depends on its product: torch stops before it
        return flops


def _last_matrix(module: nn.Module) -> int:
    """Return the parameters of the last matrix; 0 for experts, after whose products the places of tokens are kept."""
    owners = [owner for owner in module.modules() if not isinstance(owner, nn.Embedding)]
    last = [param for owner in owners for param in owner.parameters(recurse=False) if param.ndim >= 2][-1]
    return last.numel() if last.ndim == 2 else 0
