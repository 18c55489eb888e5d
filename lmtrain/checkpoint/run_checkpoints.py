"""Saves the checkpoints of a training run, decides which ones to keep, and takes the run back to one."""

import logging

from lmtrain.checkpoint.folder import Retention
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.several.together import load_together
from lmtrain.checkpoint.snapshot import Snapshot, TrainState, train_state
from lmtrain.errors import DivergedError
from lmtrain.loop.bad_steps import BadStep

log = logging.getLogger(__name__)


class RunCheckpoints:
    """Saves a run, and takes it back to an earlier checkpoint.

    A checkpoint is regular if its step is a multiple of `interval`. The newest `keep_newest` checkpoints are kept,
    those of every `keep_every` steps (None means none), the best one, and with `keep_for_rewind` those that a rewind
    needs.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        saver: Saver,
        *,
        interval: int,
        keep_newest: int,
        keep_every: int | None,
        keep_for_rewind: bool,
    ) -> None:
        self.snapshot, self.saver, self.interval = snapshot, saver, interval
        self.keep_newest, self.keep_every, self.keep_for_rewind = keep_newest, keep_every, keep_for_rewind

    def save(self, state: TrainState) -> None:
        """Copy the state of the run; the saver writes the copy while the run continues."""
        regular = state.step - state.step % self.interval
        if regular == state.step:
            state.regular_best_step = state.best_step
        # A rewind must find the same checkpoints, no matter when the run was stopped or evaluated.
        needed_to_rewind = {max(regular, state.first_step), state.regular_best_step or 0}
        protected = frozenset(needed_to_rewind) if self.keep_for_rewind else frozenset()
        retention = Retention(self.keep_newest, self.keep_every, state.best_step, protected)
        self.saver.save(state.step, self.snapshot.take(state), retention)

    def rewind(self, state: TrainState, bad: BadStep, step_samples: int) -> None:
        """Take the run back to its last regular checkpoint before the bad step, and skip the data up to that step.

        `step_samples` is the number of samples in the bad step.

        Raises:
            DivergedError: there is no such checkpoint.
        """
        self.saver.wait()
        parallel, folder = self.snapshot.parallel, self.saver.folder
        loaded = load_together(
            folder,
            parallel,
            lambda: folder.load_before(bad.step, every=self.interval, first=state.first_step),
            f"rewind {state.bad_steps}",
        )
        if loaded is None:
            raise DivergedError(f"{bad}, and there is no checkpoint to go back to")
        then = train_state(loaded)
        parallel.wait_for_all()  # now every process has read it
        folder.discard_after(then.step)
        state.go_back(then)
        self.snapshot.restore(loaded)
        state.samples = bad.first_sample + step_samples
        log.warning("went back to step %d; the data up to sample %d is skipped", state.step, state.samples)
