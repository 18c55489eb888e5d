"""Computes the loss of a model over batches, and the metrics derived from it."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from lmtrain.data.loader import TokenLoader
from lmtrain.data.prefetch import MicroBatch
from lmtrain.loop.training_parts import Parts
from lmtrain.system import System


def evaluate(
    model: nn.Module, forward: Callable[..., Any], batches: Iterable[tuple[Tensor, Tensor]], system: System
) -> float:
    """Return the mean loss in nats over all target tokens. The model and torch's random generators stay unchanged."""
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
    """Return exp(loss), or infinity if that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf


class Evaluator:
    """Evaluates the model on the validation split, and optionally on the training split.

    `forward` is the model as the trainer calls it, possibly compiled. `batches` is the number of validation batches
    (None means the whole split), and `train_batches` the number of training batches (0 means none).
    """

    def __init__(self, parts: Parts, forward: Callable[..., Any], *, batches: int | None, train_batches: int) -> None:
        self.model, self.forward, self.system = parts.model, forward, parts.system
        self.train_loader, self.val_loader = parts.train_loader, parts.val_loader
        self.batches, self.train_batches = batches, train_batches

    def loss(self, loader: TokenLoader, batches: int | None) -> float:
        """Return the mean loss in nats per token over `batches` batches, or over the whole split if it is None."""
        source = loader.whole_split() if batches is None else map(loader.batch, range(batches))
        return evaluate(self.model, self.forward, source, self.system)

    def metrics(self) -> dict[str, float]:
        """Return `val/loss`, the metrics derived from it, and `train_eval/loss` if it is switched on."""
        loader, loss = self.val_loader, self.loss(self.val_loader, self.batches)
        metrics = {"val/loss": loss, "val/perplexity": perplexity(loss)}
        if bytes_per_token := loader.bytes_per_token if self.batches is None else loader.sampled_bytes_per_token:
            metrics["val/bits_per_byte"] = loss / math.log(2) / bytes_per_token
        if self.train_batches:
            metrics["train_eval/loss"] = self.loss(self.train_loader, self.train_batches)
        return metrics
