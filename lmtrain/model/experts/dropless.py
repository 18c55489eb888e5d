"""Computes each token by the experts that were picked for it: tokens are sorted by expert, and none is dropped.

Shapes: C d_model, N tokens, E experts, K experts of a token, D width of an expert.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lmtrain.model.experts.grouped_products import grouped_product


class Experts(nn.Module):
    """SwiGLU experts, each of which computes only the tokens that were picked for it."""

    def __init__(self, d_model: int, d_expert: int, n_expert: int, n_active: int) -> None:
        super().__init__()
        self.n_active = n_active
        self.gate = nn.Parameter(torch.empty(n_expert, d_expert, d_model))
        self.up = nn.Parameter(torch.empty(n_expert, d_expert, d_model))
        self.down = nn.Parameter(torch.empty(n_expert, d_model, d_expert))

    def forward(self, x: Tensor, picked: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sums (N, C) of the picked experts' outputs, and the number of tokens of each expert (E,).

        Args:
            x: (N, C), the tokens.
            picked: (N, K), the numbers of each token's experts.
            weights: (N, K), the weights of their outputs.
        """
        device, n_expert = x.device, len(self.gate)
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else x.dtype
        with torch.autocast(device.type, enabled=False):
            by_expert, order = picked.flatten().sort(stable=True)  # (N · K,)
            ends = torch.searchsorted(by_expert, torch.arange(n_expert, device=device), right=True)  # (E,)
            load = ends.diff(prepend=ends.new_zeros(1))
            ends, places = ends.to(torch.int32), order.argsort().view_as(picked)
            rows = _apply(_Spread, x.to(dtype), order, places)  # (N · K, C)
            gate = grouped_product(rows, self.gate.to(dtype), ends)  # (N · K, D)
            up = grouped_product(rows, self.up.to(dtype), ends)
            # Weighted here and not after the last product, so that the backward does not need its result.
            hidden = (F.silu(gate) * up * weights.flatten()[order, None]).to(dtype)
            rows = grouped_product(hidden, self.down.to(dtype), ends)  # (N · K, C)
            return _apply(_Collect, rows, order, places), load

    def matrix_parameters(self) -> int:
        """Return the parameters of the experts of one token."""
        return self.n_active * sum(param.shape[1:].numel() for param in self.parameters())


class _Spread(torch.autograd.Function):
    """Copies the row of a token to the places of all its experts. Its transpose is `_Collect`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, order: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        return spread(x, order)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return collect(grad, *ctx.saved_tensors), None, None


class _Collect(torch.autograd.Function):
    """Adds up the rows of each token's experts. No atomic additions are needed, so the sum is the same every time."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, order: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(order)
        return collect(rows, places)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return spread(grad, *ctx.saved_tensors), None, None


def _apply(function: type[torch.autograd.Function], rows: Tensor, order: Tensor, places: Tensor) -> Tensor:
    out: Tensor = function.apply(rows, order, places)  # type: ignore[no-untyped-call]
    return out


def spread(x: Tensor, order: Tensor) -> Tensor:
    """Return K copies of each row of `x` (N, C), where `order` (N · K,) has the number of the copy at each place."""
    return x.index_select(0, order // (len(order) // len(x)))


def collect(rows: Tensor, places: Tensor) -> Tensor:
    """Return for each token the sum (N, C) of its `rows` (N · K, C), which are at `places` (N, K)."""
    return rows.index_select(0, places.flatten()).view(*places.shape, -1).sum(1)
