"""The MLPs that a decoder can have: modules made from `d_model` and `d_ff` that map (B, T, C) to (B, T, C)."""

from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from lmtrain.model.llama import SwiGLU

MLPKind = Literal["swiglu", "relu2"]


class SquaredReLU(nn.Module):
    """Two linear layers with the square of a ReLU between them (So et al., "Primer", 2021)."""

    def __init__(self, d_model: int, d_ff: int) -> None:
        super().__init__()
        self.up = nn.Linear(d_model, d_ff, bias=False)
        self.down = nn.Linear(d_ff, d_model, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(F.relu(self.up(x)).square())
        return out


MLPS: dict[str, Callable[[int, int], nn.Module]] = {"swiglu": SwiGLU, "relu2": SquaredReLU}


def make_mlp(kind: MLPKind | Callable[..., Any], d_model: int, d_ff: int) -> nn.Module:
    """Return a new MLP. Its last matrix is called `down`: it starts smaller, since it adds to the residual stream."""
    make: Callable[[int, int], nn.Module] = kind if callable(kind) else MLPS[kind]
    return make(d_model, d_ff)
