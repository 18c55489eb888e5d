"""Measures the phases of a step by marks that the trainer's own parts set, without a second copy of `Trainer.step`."""

import contextlib
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Protocol, Self

import torch

from lmtrain.model import loss
from lmtrain.trainer import Trainer

DATA, FORWARD, BACKWARD, CLIP, OPTIMIZER, LOGGING = "data", "forward", "backward", "clip", "optimizer", "logging"
LOSS = "loss"
PHASES = {
    DATA: "waiting for a micro-batch, and starting its copy to the device",
    FORWARD: "the model, up to its loss",
    LOSS: "the loss, as far as the model computes it apart; with its gradient, if it is computed in chunks",
    BACKWARD: "the gradients",
    CLIP: "the norm of the gradients, clipping, and the decision about bad steps",
    OPTIMIZER: "the update of the weights",
    LOGGING: "everything between two steps: checks, metrics and their line in metrics.jsonl",
}


class Marks(Protocol):
    """Notes when each phase of a step begins."""

    def mark(self, phase: str) -> None:
        """Begin a phase, and end the one before."""


class Timeline:
    """A sequence of marks; a phase lasts from its mark to the next one.

    On CUDA a mark is an event in the stream, so that setting it does not wait for the device, and phases are times of
    the device.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []

    def mark(self, phase: str) -> None:
        """Begin a phase, and end the one before."""
        if self._device.type == "cuda":
            event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            event.record()
            self._marks.append((phase, event))
        else:
            self._marks.append((phase, time.perf_counter()))

    def seconds(self) -> Mapping[str, float]:
        """Return the seconds of each phase, and forget all marks; the last mark only ends the phase before it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        total: Counter[str] = Counter()
        for (phase, begun), (_, ended) in zip(self._marks, self._marks[1:], strict=False):
            total[phase] += begun.elapsed_time(ended) / 1000 if self._device.type == "cuda" else ended - begun
        self._marks.clear()
        return total


class _MarkedBatches:
    def __init__(self, batches: Iterator[Any], marks: Marks) -> None:
        self._batches, self._to = batches, marks

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        self._to.mark(DATA)
        return next(self._batches)


@contextlib.contextmanager
def marked(trainer: Trainer, marks: Marks) -> Iterator[None]:
    """Let the parts of a running trainer set marks: its micro-batches, forward, loss, scaler and optimizer.

    Before the norm of the gradients, the trainer asks its scaler to unscale them, also if the scaler is disabled. The
    loss is a phase of its own only if the model computes it in chunks, and if no CUDA graph contains it.
    """
    batches, forward, scaler = trainer.micro_batches, trainer.forward, trainer.scaler
    unscale, in_chunks = scaler.unscale_, loss.in_chunks

    def marked_forward(*args: Any, **kwargs: Any) -> Any:
        marks.mark(FORWARD)
        result = forward(*args, **kwargs)
        marks.mark(BACKWARD)
        return result

    def marked_loss(*args: Any, **kwargs: Any) -> Any:
        marks.mark(LOSS)
        result = in_chunks(*args, **kwargs)
        marks.mark(FORWARD)
        return result

    def marked_unscale(optimizer: torch.optim.Optimizer) -> None:
        marks.mark(CLIP)
        unscale(optimizer)

    trainer.micro_batches, trainer.forward = _MarkedBatches(batches, marks), marked_forward  # type: ignore[assignment]
    scaler.unscale_ = marked_unscale  # type: ignore[method-assign]
    if not trainer.system.uses_cuda_graphs:
        loss.in_chunks = marked_loss
    hook = trainer.optimizer.register_step_pre_hook(lambda *_: marks.mark(OPTIMIZER))
    try:
        yield
    finally:
        hook.remove()
        loss.in_chunks = in_chunks
        trainer.micro_batches, trainer.forward = batches, forward
        del scaler.unscale_  # the method of the class is there again
