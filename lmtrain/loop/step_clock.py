"""The time of a run, and of its training steps alone."""

import time
from types import TracebackType


class StepClock:
    """Seconds a step, without the time that evaluating, logging and saving took; and those of the whole run.

    It starts after `step` steps and `seconds` seconds, which earlier processes of the run have spent.
    """

    def __init__(self, step: int, seconds: float) -> None:
        self._step, self._started = step, time.perf_counter()
        self._run_started = self._started - seconds

    def lap(self, step: int) -> float:
        """Return the mean seconds of the steps since the last lap."""
        now = time.perf_counter()
        seconds = (now - self._started) / (step - self._step)
        self._step, self._started = step, now
        return seconds

    def run_seconds(self) -> float:
        """Return the time for training, evaluating and saving so far, over all resumes."""
        return time.perf_counter() - self._run_started

    def paused(self) -> "StepClock":
        """Leave the time in a `with` block out of the steps' time."""
        return self

    def __enter__(self) -> None:
        self._paused = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started += time.perf_counter() - self._paused
