"""Puts together the metrics of a training step."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmtrain.model.flops import flops_per_token
from lmtrain.system import System


class Speed(NamedTuple):
    """Holds the mean seconds and tokens per step since the last metrics, and the tokens per sequence."""

    seconds: float
    tokens: float
    length: int


def train_metrics(
    loss: Tensor, grad_norm: Tensor, optimizer: torch.optim.Optimizer, system: System, model: nn.Module, speed: Speed
) -> dict[str, float]:
    """Return the metrics of a step with this loss (nats per token) and gradient norm; this waits for the device."""
    metrics = {
        "train/loss": loss.item(),
        "lr": optimizer.param_groups[0]["lr"],
        "grad_norm": grad_norm.item(),
        "tokens_per_second": speed.tokens / speed.seconds,
        "step_time_ms": 1000 * speed.seconds,
        "memory_gb": system.memory_gb(),
    }
    if peak := system.peak_flops():
        metrics["mfu"] = flops_per_token(model, speed.length) * speed.tokens / speed.seconds / peak
    return metrics
