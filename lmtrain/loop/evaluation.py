"""The loss of a model over batches, and what is said of it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.data.prefetch import MicroBatch
from lmtrain.system import System


def evaluate(
    model: nn.Module, forward: Callable[..., Any], batches: Iterable[tuple[Tensor, Tensor]], system: System
) -> float:
    """Mean loss in nats over all target tokens of the batches; changes neither the model nor torch's generators."""
    total = torch.zeros((), dtype=torch.float64, device=system.device)
    targets = 0
    training = model.training
    model.eval()
    devices = [system.device] if system.device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices):
            for x, y in batches:
                batch = MicroBatch.of(x, y, pin=system.device.type == "cuda").to(system.device)
                with system.autocast():
                    _, loss = forward(batch.x, batch.y)
                total += loss.double() * batch.n_targets
                targets += batch.n_targets
    finally:
        model.train(training)
    return float(total / targets)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float can't hold it."""
    return math.exp(loss) if loss < 700 else math.inf
