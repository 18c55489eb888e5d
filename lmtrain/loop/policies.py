"""Policies for bad steps: `stop`, `skip` and `rewind`, three functions with one signature.

When a policy is called, the device has already skipped the update of the bad step (see `update`).
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from lmtrain.errors import DivergedError
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.bad_steps import BadStep

log = logging.getLogger(__name__)

MAX_BAD_STEPS_IN_A_ROW = 20  # after more, the model is at fault and not the data
MAX_REWINDS = 3  # to the same checkpoint: skipping the data after it three times did not help

# Called with the bad step and the file with its batch; returns if the run continues with the next step.
Policy = Callable[[BadStep, Path], None]


class RewindError(Exception):
    """Makes the trainer go back from a bad step to the last regular checkpoint."""

    def __init__(self, bad: BadStep) -> None:
        super().__init__(str(bad))
        self.bad = bad


def stop(bad: BadStep, batch_file: Path) -> None:
    """Raise DivergedError, so that a person can look at the batch."""
    raise DivergedError(
        f"{bad}; its update was skipped, and its batch is in {batch_file}; try a smaller optimizer.lr, or "
        "trainer.on_bad_step=skip or rewind"
    )


def skip(bad: BadStep, batch_file: Path) -> None:
    """Log a warning and continue with the next step."""
    log.warning("%s; its update was skipped, and its batch is in %s", bad, batch_file)


def rewind(bad: BadStep, batch_file: Path) -> None:
    """Raise RewindError: the trainer goes back to a checkpoint and continues with the data after the bad step."""
    log.warning("%s; its batch is in %s", bad, batch_file)
    raise RewindError(bad)


def apply(policy: Policy, bad_steps: Iterable[BadStep], batches: BadBatches, count: Callable[[int], int]) -> None:
    """Keep the batch of each bad step and apply the policy.

    Args:
        policy: What to do about a bad step.
        bad_steps: The bad steps, in order.
        batches: Keeps their batches.
        count: Records a bad step; returns how many of them there were in a row.

    Raises:
        DivergedError: There were too many bad steps in a row, or the policy ends the run.
        RewindError: The policy goes back to a checkpoint.
    """
    for bad in bad_steps:
        batch_file = batches.keep(bad)
        if count(bad.step) > MAX_BAD_STEPS_IN_A_ROW:
            raise DivergedError(f"{bad}; the {MAX_BAD_STEPS_IN_A_ROW} steps before it were also bad")
        policy(bad, batch_file)


POLICIES: Mapping[str, Policy] = {"stop": stop, "skip": skip, "rewind": rewind}  # by `trainer.on_bad_step`
