"""AdamW written by hand, to compare the fused one with."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn


class Adamw:
    """AdamW as in Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), algorithm 2.

    Only parameters of two or more dimensions decay, as in `lmtrain.optimizer`.
    """

    def __init__(self, params: Iterable[nn.Parameter], weight_decay: float, betas: Sequence[float], eps: float) -> None:
        self.params, self.weight_decay, self.betas, self.eps = list(params), weight_decay, betas, eps
        self.means = [torch.zeros_like(param) for param in self.params]
        self.squares = [torch.zeros_like(param) for param in self.params]
        self.steps = 0

    @torch.no_grad()
    def step(self, lr: float) -> None:
        """Update the parameters by their gradients."""
        self.steps += 1
        beta1, beta2 = self.betas
        for param, mean, square in zip(self.params, self.means, self.squares, strict=True):
            gradient: Tensor = param.grad  # type: ignore[assignment]
            mean.copy_(beta1 * mean + (1 - beta1) * gradient)
            square.copy_(beta2 * square + (1 - beta2) * gradient**2)
            direction = mean / (1 - beta1**self.steps) / ((square / (1 - beta2**self.steps)).sqrt() + self.eps)
            decay = self.weight_decay if param.ndim >= 2 else 0.0
            param.copy_(param - lr * (direction + decay * param))
