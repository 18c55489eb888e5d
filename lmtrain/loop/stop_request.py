"""What asks a run to stop: signals, and a file in its directory."""

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
# SIGHUP: the terminal is gone, as when a connection is lost. SIGUSR1: Slurm's warning that time runs out.
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
PRUNE_FILE = "prune.json"
PRUNE_FILE_BYTES = 10_000
REPEAT_S = 0.5  # one signal, sent to a process group and forwarded by a launcher as well, arrives twice


def ask_to_prune(run_dir: Path, reason: str) -> None:
    """Ask the run in a directory to save and end, from any process or machine that can write there."""
    write_atomically(run_dir / PRUNE_FILE, json.dumps({"reason": reason}) + "\n")


def signals_to_handle() -> list[signal.Signals]:
    """Return those of SIGNALS that ask this process to stop: under `nohup` a hang-up does not."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [number for number in SIGNALS if not (ignored and number == signal.SIGHUP)]


class StopRequest:
    """Notes the first of SIGNALS that comes; a second one ends the process at once, in any state.

    The first one raises InterruptedBySignal where it comes, unless the training loop `defers` it: there, between two
    steps is the place to stop, and the loop looks at `signal` once a step. In `at_once`, inside of that, it raises
    again: in what may be cut short and done anew.

    A `prune_file` is a request, too, if it is written while the run goes on; one from before is removed.

    Where the process is not the run's own (`owns_process` false), as in a notebook, a second signal does not end it: it
    raises InterruptedBySignal, in any state.
    """

    def __init__(self, prune_file: Path | None = None, *, owns_process: bool = True) -> None:
        self.prune_file = prune_file
        self.owns_process = owns_process
        self.signal: int | None = None
        self.defers = False
        self._came = 0.0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self.prune_file is not None:
            self.prune_file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():  # Python allows no handlers elsewhere
            self._previous = {number: signal.signal(number, self._note) for number in signals_to_handle()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: it is not Python's own

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Raise InterruptedBySignal if a signal has come, or as soon as one comes."""
        deferred, self.defers = self.defers, False
        try:
            if self.signal is not None:
                raise InterruptedBySignal(self.signal)
            yield
        finally:
            self.defers = deferred

    def asked(self, *, looks: bool) -> InterruptedBySignal | PrunedError | None:
        """Return what to raise once all is saved; None if nothing asks to stop.

        With `looks`, look for the file as well: a stat, which takes 2 µs, or a round trip over the network.
        """
        if self.signal is not None:
            return InterruptedBySignal(self.signal)
        if not looks or self.prune_file is None or not self.prune_file.exists():
            return None
        try:
            reason = str(read_json_limited(self.prune_file, PRUNE_FILE_BYTES)["reason"])
        except (OSError, ValueError, LookupError, TypeError):  # a file of that name says enough
            reason = f"{PRUNE_FILE} asks for it"
        return PrunedError(reason)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.signal is not None:
            if time.monotonic() - self._came < REPEAT_S or number == signal.SIGHUP:  # which the shell sends as well
                return
            if not self.owns_process:
                _write(f"\n{name} again: stopping at once\n")
                raise InterruptedBySignal(number)
            _write(f"\n{name} again: leaving at once\n" + (SHOW_CURSOR if sys.stderr.isatty() else ""))
            os._exit(ending_by_signal(number).exit_code)  # no clean-up to wait for; a checkpoint half written is none
        self.signal, self._came = number, time.monotonic()
        again = "leaves" if self.owns_process else "stops"
        _write(f"\n{name}: stopping, with everything saved; once more {again} at once\n")
        if not self.defers:
            raise InterruptedBySignal(number)


def _write(words: str) -> None:
    # Straight to the terminal: a log line from here could come in the middle of another one.
    with contextlib.suppress(OSError):
        os.write(STDERR, words.encode())
