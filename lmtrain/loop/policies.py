"""What a run does after a bad step: `stop`, `skip` or `rewind`, three callables of one signature.

The update of a bad step has been left out already, on the device (`update`), when a policy is called.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from lmtrain.errors import DivergedError
from lmtrain.loop.bad_steps import BadStep

log = logging.getLogger(__name__)

MAX_BAD_STEPS_IN_A_ROW = 20  # more of them are the model's fault and not the data's
MAX_REWINDS = 3  # to one checkpoint: the data after it has been left out three times, and that did not help

# Called with the bad step and the file that its batch is kept in; returns if the run goes on from here.
Policy = Callable[[BadStep, Path], None]


class RewindError(Exception):
    """A bad step that the run goes back from, to its last regular checkpoint."""

    def __init__(self, bad: BadStep) -> None:
        super().__init__(str(bad))
        self.bad = bad


def stop(bad: BadStep, batch_file: Path) -> None:
    """Raise DivergedError: a person should look at it."""
    raise DivergedError(
        f"{bad}; its update was left out, its batch is in {batch_file}; try a smaller optimizer.lr, or "
        "trainer.on_bad_step=skip or rewind"
    )


def skip(bad: BadStep, batch_file: Path) -> None:
    """Go on with the next step."""
    log.warning("%s; its update is left out, its batch is in %s", bad, batch_file)


def rewind(bad: BadStep, batch_file: Path) -> None:
    """Raise RewindError: the trainer goes back to a checkpoint, and on from there with the data after the bad step."""
    log.warning("%s; its batch is in %s", bad, batch_file)
    raise RewindError(bad)


POLICIES: Mapping[str, Policy] = {"stop": stop, "skip": skip, "rewind": rewind}  # by `trainer.on_bad_step`
