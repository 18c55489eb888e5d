"""Requests to stop a run: signals, and a file in the run directory."""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

from lmtrain.errors import InterruptedBySignal, PrunedError, ending_by_signal
from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json_limited

STDERR = 2
SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
# SIGHUP: the terminal was closed or its connection was lost. SIGUSR1 and SIGUSR2: Slurm's warning before a time limit;
# scripts ask for the first, submitit for the second.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
PRUNE_FILE = "prune.json"
PRUNE_FILE_BYTES = 10_000
SLURM_JOB = "SLURM_JOB_ID"  # environment variable: set in every process of a Slurm job
REPEAT_S = 0.5  # a signal that is sent to the process group and also forwarded by a launcher arrives twice
REPEAT_OF_SEVERAL_S = 5.0  # torchrun also stops the other processes when one of them has ended


def ask_to_prune(run_dir: Path, reason: str) -> None:
    """Ask the run in a directory to save and stop. Any process or machine that can write there may do so."""
    write_atomically(run_dir / PRUNE_FILE, json.dumps({"reason": reason}) + "\n")


def signals_to_handle() -> list[signal.Signals]:
    """Return the SIGNALS that stop this process: all, or all but SIGHUP under `nohup`."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]


class StopRequest:
    """Records the first stop signal; a second one ends the process immediately, in any state.

    The first signal raises InterruptedBySignal where it arrives. While `defers` is set, it is only recorded: the
    training loop can stop only between two steps, and checks `requested` once per step. Inside a `with stop.at_once()`
    block it raises again; use that for work that can be interrupted and repeated.

    In a Slurm job, only a second Ctrl-C ends the process. Slurm sends a warning and later SIGTERM, often to every
    process of the job, whose parents may pass it on; the time until its SIGKILL belongs to the saving.

    A `prune_file` that appears during the run is a request, too. One that exists before the start is removed.

    Signals within `repeat_s` seconds of the first are the same request. With `announces` false, the first one prints
    nothing, because another process of the run does so.

    With `owns_process` false, for a run in a notebook or script, a second signal does not end the process, but raises
    InterruptedBySignal, in any state.
    """

    def __init__(
        self,
        prune_file: Path | None = None,
        *,
        owns_process: bool = True,
        repeat_s: float = REPEAT_S,
        announces: bool = True,
    ) -> None:
        self.prune_file, self.repeat_s, self.announces = prune_file, repeat_s, announces
        self.owns_process = owns_process
        self.signal: int | None = None
        self.defers = False
        self._arrived = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self.prune_file is not None:
            self.prune_file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():  # Python allows signal handlers only there
            self._previous = {number: signal.signal(number, self._note) for number in signals_to_handle()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it is not Python's own

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise InterruptedBySignal if a signal has arrived, or as soon as one arrives."""
        deferred, self.defers = self.defers, False
        try:
            if self.signal is not None:
                raise InterruptedBySignal(self.signal)
            yield
        finally:
            self.defers = deferred

    def requested(self, *, check_file: bool) -> InterruptedBySignal | PrunedError | None:
        """Return the exception to raise once the run is saved; None if there is no request to stop.

        With `check_file`, also look for the prune file, which takes 2 µs, or a round trip on a network file system.
        """
        if self.signal is not None:
            return InterruptedBySignal(self.signal)
        if not check_file or self.prune_file is None or not self.prune_file.exists():
            return None
        try:
            reason = str(read_json_limited(self.prune_file, PRUNE_FILE_BYTES)["reason"])
        except (OSError, ValueError, LookupError, TypeError):  # the file need not give a reason
            reason = f"requested by {PRUNE_FILE}"
        return PrunedError(reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is not None:
            repeated = time.monotonic() - self._arrived < self.repeat_s
            if repeated or number == signal.SIGHUP:  # the shell sends SIGHUP as well
                return
            if SLURM_JOB in os.environ and number != signal.SIGINT:
                _write(f"\n{name} again: still saving\n")
                return
            if not self.owns_process:
                _write(f"\n{name} again: stopping without saving\n")
                raise InterruptedBySignal(number)
            _write(f"\n{name} again: exiting without saving\n" + (SHOW_CURSOR if sys.stderr.isatty() else ""))
            os._exit(ending_by_signal(number).exit_code)  # no clean-up: a half-written checkpoint does not count
        self.signal, self._arrived = number, time.monotonic()
        second = "exits" if self.owns_process else "stops"
        which = "Ctrl-C" if SLURM_JOB in os.environ else "signal"
        if self.announces:
            _write(f"\n{name}: saving everything, then stopping; a second {which} {second} without saving\n")
        if not self.defers:
            raise InterruptedBySignal(number)


def _write(words: str) -> None:
    # Written straight to the terminal: a log line from a signal handler could appear inside another one.
    with contextlib.suppress(OSError):
        os.write(STDERR, words.encode())
