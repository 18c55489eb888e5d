"""The process that `verify-resume` kills: `python -m lmtrain …` in a fork of one that has imported torch already.

Run as a module it is the parent of these forks, and reads commands from its standard input, one per line:
`{"arguments": […], "output": FILE, "phase": FILE}` starts an attempt (one at a time), `kill` ends it with SIGKILL.
It prints `ready` first, and then each attempt's return code, negative for a signal. When its input ends, so does it,
and the attempt with it.
"""

import atexit
import contextlib
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

from lmtrain.verify.phases import PhaseMonitor

# Nothing of them computes when imported: a fork has none of the threads that were there.
SLOW_IMPORTS = ("lmtrain.train_run", "lmtrain.commands.train", "torch._dynamo")  # the last is torch.optim's
SWITCH_S = 0.001  # Python hands over between threads five times as often as by default, for the monitor to see enough
POLL_S = 0.001


def serve() -> dict[str, Any] | None:
    """Start attempts as asked. Return an attempt's request in its own, new process, and None when all are done."""
    for slow in SLOW_IMPORTS:
        importlib.import_module(slow)
    gc.freeze()  # what is collected never touches the memory shared with the forks
    os.write(1, b"ready\n")
    reader, child = _Lines(0), 0
    while True:
        if child:
            done, status = os.waitpid(child, os.WNOHANG)
            if done:
                child = 0
                os.write(1, f"{os.waitstatus_to_exitcode(status)}\n".encode())
        line = reader.next(POLL_S if child else None)
        if line == "":  # the end
            if child:
                _kill(child)
                os.waitpid(child, 0)
            return None
        if line is None or (line == "kill" and not child):  # it had come to its end by itself
            continue
        if line == "kill":
            _kill(child)
            continue
        child = os.fork()
        if not child:
            request: dict[str, Any] = json.loads(line)
            return request


class _Lines:
    """Lines of a file descriptor, read with a timeout: None when it is over, "" at the end."""

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
    """Kill the child's process group. The child is not reaped yet, so that its number is still its own."""
    try:
        os.killpg(child, signal.SIGKILL)
    except ProcessLookupError:  # so young that it has no group yet
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)


def attempt(request: Mapping[str, Any]) -> NoReturn:
    """Become `python -m lmtrain` with these arguments, watched by a PhaseMonitor, and end."""
    os.setsid()
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    silence = os.open(os.devnull, os.O_RDONLY)
    for descriptor, target in ((silence, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, target)
    sys.setswitchinterval(SWITCH_S)
    PhaseMonitor(Path(request["phase"])).start()
    become_lmtrain(request["arguments"])


def become_lmtrain(arguments: Sequence[str]) -> NoReturn:
    """Do what `python -m lmtrain` with these arguments does, and end as it ends."""
    sys.argv = ["lmtrain", *arguments]
    code = 1
    try:
        runpy.run_module("lmtrain", run_name="__main__", alter_sys=True)
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    # All that Python does at the end, but for freeing its memory, which takes seconds when it is that of a fork. The
    # first call asks the threads of executors to end, which wait for work until then, and joins all but daemons.
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    if mine := serve():
        attempt(mine)
