"""Puts together the metrics of a training step."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lmtrain.loop.update import updated_modules
from lmtrain.model.flops import flops_per_token
from lmtrain.system import System

Metrics = dict[str, float]


class Speed(NamedTuple):
    """Holds the mean seconds and tokens per step since the last metrics, and the tokens per sequence."""

    seconds: float
    tokens: float
    length: int


def train_metrics(
    loss: Tensor, grad_norm: Tensor, lr: float, system: System, model: nn.Module, speed: Speed
) -> dict[str, float]:
    """Return the metrics of a step with this loss (nats per token) and gradient norm; this waits for the device.

    `lr` is the learning rate of the schedule, without the factors of parameter groups.
    """
    metrics = {
        "train/loss": loss.item(),
        "lr": lr,
        "grad_norm": grad_norm.item(),
        "tokens_per_second": speed.tokens / speed.seconds,
        "step_time_ms": 1000 * speed.seconds,
        "memory_gb": system.memory_gb(),
    }
    if peak := system.peak_flops():
        metrics["mfu"] = flops_per_token(model, speed.length) * speed.tokens / speed.seconds / peak
    return metrics | module_metrics(updated_modules(model))


def module_metrics(modules: Iterable[Any]) -> dict[str, float]:
    """Return the means over the modules of what their method `metrics` returns about the last step."""
    values = defaultdict(list)
    for module in modules:
        for name, value in module.metrics().items():
            values[name].append(value)
    return {name: float(torch.stack(each).mean()) for name, each in values.items()}
