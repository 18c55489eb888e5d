"""Measures the time of a run, and the time of its training steps without the rest."""

import time
from types import TracebackType


class StepClock:
    """Measures the seconds per training step, without evaluating, logging and saving, and the seconds of the whole run.

    Earlier processes of the run have done `step` steps with `samples` samples in `seconds` seconds.
    """

    def __init__(self, step: int, samples: int, seconds: float) -> None:
        self._step, self._samples, self._started = step, samples, time.perf_counter()
        self._run_started = self._started - seconds

    def lap(self, step: int, samples: int) -> tuple[float, float]:
        """Return the mean seconds and samples per step since the last lap."""
        now, steps = time.perf_counter(), step - self._step
        means = (now - self._started) / steps, (samples - self._samples) / steps
        self._step, self._samples, self._started = step, samples, now
        return means

    def run_seconds(self) -> float:
        """Return the seconds of training, evaluating and saving so far, including earlier processes of the run."""
        return time.perf_counter() - self._run_started

    def paused(self) -> "StepClock":
        """Return a context manager whose time does not count as time of the steps."""
        return self

    def __enter__(self) -> None:
        self._paused = time.perf_counter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._started += time.perf_counter() - self._paused
