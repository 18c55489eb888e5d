"""Signals that ask a run to stop, noted for the loop to see."""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

STDERR = 2


class InterruptedBySignal(Exception):  # noqa: N818 (no error: everything is saved)
    """A signal asked the run to stop, and it did so after saving."""

    def __init__(self, number: int, step: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; everything is saved")
        self.number = number


class SignalFlag:
    """Notes the first SIGINT or SIGTERM for the loop to see; a second one acts at once, as ever."""

    def __init__(self) -> None:
        self.signal: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows no handlers elsewhere
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        # Straight to the terminal: a log line from here could come in the middle of another one.
        words = (
            f"\n{signal.Signals(number).name}: stopping after this step, with a checkpoint; once more stops at once\n"
        )
        with contextlib.suppress(OSError):
            os.write(STDERR, words.encode())
        for each, handler in self._previous.items():
            signal.signal(each, handler)
