"""Runs the attempts that `verify-resume` kills: `python -m lmtrain …` in forks of a process with torch imported.

Run as a module, it is the parent of these forks and reads commands from its standard input, one per line:
`{"arguments": […], "output": FILE, "phase": FILE}` starts an attempt (one at a time), and `kill` stops it with SIGKILL.
It prints `ready` first, and then the return code of each attempt, negative for a signal. When its input ends, it kills
the running attempt and exits.
"""

import atexit
import contextlib
import faulthandler
import gc
import importlib
import json
import os
import runpy
import select
import signal
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from lmtrain.verify.phases import PhaseRecorder

# They must not start threads when they are imported, because a fork does not have its parent's threads.
SLOW_IMPORTS = ("lmtrain.train_run", "lmtrain.commands.train")
POLL_S = 0.001


def serve() -> dict[str, Any] | None:
    """Start the requested attempts; return the request in an attempt's new process, and None in the parent."""
    for slow in SLOW_IMPORTS:
        importlib.import_module(slow)
    gc.freeze()  # so that garbage collection does not write to memory that the forks share
    os.write(1, b"ready\n")
    reader, child = _Lines(0), 0
    while True:
        if child:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                child = 0
                os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        line = reader.next(POLL_S if child else None)
        if line == "":  # the input has ended
            if child:
                _kill(child)
                os.waitpid(child, 0)
            return None
        if line is None or (line == "kill" and not child):  # the attempt had already ended
            continue
        if line == "kill":
            _kill(child)
            continue
        child = os.fork()
        if not child:
            request: dict[str, Any] = json.loads(line)
            return request


class _Lines:
    """Reads the lines of a file descriptor with a timeout; `next` returns None at the timeout and "" at the end."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.pending = descriptor, b""

    def next(self, timeout_s: float | None) -> str | None:
        while b"\n" not in self.pending:
            if not select.select([self.descriptor], [], [], timeout_s)[0]:
                return None
            chunk = os.read(self.descriptor, 1 << 16)
            if not chunk:
                return ""
            self.pending += chunk
        line, self.pending = self.pending.split(b"\n", 1)
        return line.decode()


def _kill(child: int) -> None:
    """Kill the child's process group; the child has not been waited for, so its process id is still valid."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # the child has not created its group yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def attempt(request: Mapping[str, Any]) -> NoReturn:
    """Run `python -m lmtrain` with the requested arguments in this process, with a PhaseRecorder, and exit."""
    os.setsid()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    no_input = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((no_input, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    faulthandler.enable()  # a crash shows its stack
    PhaseRecorder(Path(request["phase"])).install()
    become_lmtrain(request["arguments"])


def become_lmtrain(arguments: Sequence[str]) -> NoReturn:
    """Run `python -m lmtrain` with these arguments in this process, and exit with its exit code."""
    sys.argv = ["lmtrain", *arguments]
    code = 1
    try:
        runpy.run_module("lmtrain", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    # This does what Python does at exit, except for freeing its memory, which takes seconds in a fork. The first call
    # stops the idle threads of executors and joins all threads but daemons.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if own_request := serve():
        attempt(own_request)
