"""Computes the gradients of a step from its micro-batches."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lmtrain.data.prefetch import MicroBatch
from lmtrain.loop.rank_times import RankTimes
from lmtrain.loop.training_parts import Parts


def n_targets(micro_batches: Sequence[MicroBatch]) -> int:
    """Return how many targets count in the micro-batches."""
    return sum(batch.n_targets for batch in micro_batches)


def compute_gradients(
    forward: Callable[..., Any],
    micro_batches: Sequence[MicroBatch],
    targets: int,
    parts: Parts,
    scaler: torch.amp.GradScaler,
    times: RankTimes,
) -> tuple[Tensor, Sequence[Tensor]]:
    """Compute the gradients of the mean loss over all targets of a step.

    Args:
        forward: The model as the trainer calls it; its loss is the mean over the targets of a micro-batch.
        micro_batches: The micro-batches of this process.
        targets: The targets that count in all micro-batches of all processes.
        parts: The parts of the run.
        scaler: Scales the loss of each backward.
        times: Measures the computation until this process needs the others.

    Returns:
        The mean loss of the step, and the mean loss of each of its micro-batches in the order of the data; scalars on
        the device, in nats.
    """
    system, parallel = parts.system, parts.parallel
    total, losses = torch.zeros((), device=system.device), []
    times.begin()
    for number, batch in enumerate(micro_batches, 1):
        last = number == len(micro_batches)
        if batch.n_targets == 0 and not parallel.computes_without_targets(last=last):
            losses.append(torch.zeros_like(total))
            continue  # its mean loss would be 0 / 0
        # Without any targets of its own, it is computed for some, and counts 0.
        y = batch.y if batch.n_targets else batch.y.clamp(min=0)
        with parallel.accumulating(last=last):
            with system.autocast():
                _, loss = forward(batch.x, y)
            if last:
                times.end()
            losses.append(loss.detach() if batch.n_targets else torch.zeros_like(total))
            loss = loss * (batch.n_targets / targets)
            scaler.scale(parallel.scaled(loss)).backward()  # type: ignore[no-untyped-call]
        total += loss.detach()
    parallel.gradients_ready()
    return parallel.combined(total, losses)
