"""Parameters of all shapes, and gradients for them, for tests of optimizers."""

import torch
from torch import nn

SHAPES = {"embedding": (7, 4), "gain": (4,), "cube": (2, 3, 4), "scale": (), "bias": (5,), "matrix": (4, 5)}


def parameters(seed: int, dtype: torch.dtype = torch.float64) -> dict[str, nn.Parameter]:
    """Return random parameters by name."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for name, shape in SHAPES.items()
    }


def set_gradients(named: dict[str, nn.Parameter], step: int) -> None:
    """Set the gradients of one step, which are the same for every dtype and order of the parameters."""
    generator = torch.Generator().manual_seed(1000 + step)
    for name in SHAPES:  # always in this order, so that each parameter gets the same gradient
        gradient = torch.randn(SHAPES[name], generator=generator, dtype=torch.float64)
        named[name].grad = gradient.to(named[name].dtype)
