"""Runs checks in processes of their own: an error or a crash of one check does not prevent the others.

A process runs checks one after the other and reports what they find through a pipe, one JSON object per line. After a
check that raises an error, a new process runs the rest, since a CUDA error makes all later calls in its process fail.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import IO, Any

from lmtrain.errors import ConfigError
from lmtrain.verify.device.finding import FAILED, NOT_RUN, Check, Finding

LAST_LINES = 20  # of what a process printed, kept if it failed
SHORTEST_S = 3.0  # a check is not started with less time left than this


@dataclass(frozen=True)
class Reported:
    """A finding with its check, and the seconds since the check's previous finding."""

    check: Check
    finding: Finding
    seconds: float


def run_checks(
    checks: Sequence[Check], overrides: Sequence[str], folder: Path, deadline: float, patience: float = 1.0
) -> Generator[Reported, None, None]:
    """Run the checks and yield what they find, until the deadline (in time.monotonic seconds).

    `folder` is for files that the checks write. `patience` multiplies the time limits of the checks.

    Raises:
        ConfigError: a check found that the overrides are impossible on this device.
    """
    for _, group in groupby(checks, key=lambda check: check.process):
        left = list(group)
        while left:
            if deadline - time.monotonic() < SHORTEST_S:
                yield from (Reported(check, Finding(NOT_RUN, "no time was left; see --budget"), 0.0) for check in left)
                break
            request = {
                "checks": [[check.name, check.function] for check in left],
                "overrides": [*overrides],
                "folder": str(folder),
                "seconds": deadline - time.monotonic(),
            }
            with CheckProcess(request) as process:
                left = yield from _follow(process, left, deadline, patience)


def _follow(
    process: "CheckProcess", checks: Sequence[Check], deadline: float, patience: float
) -> Generator[Reported, None, list[Check]]:
    """Yield what a process finds, and return the checks that it did not begin."""
    left = list(checks)
    running: Check | None = None
    until, last = deadline, time.monotonic()
    while True:
        line = process.next(until)
        now = time.monotonic()
        match line:
            case {"begun": name}:
                running = next(check for check in left if check.name == name)
                left.remove(running)
                until = min(deadline, now + running.limit_s * patience)
            case {"finding": finding} if running is not None:
                yield Reported(running, Finding(**finding), now - last)
            case {"mistake": text}:
                raise ConfigError(text)
            case {"ended": _}:
                running, until = None, deadline
            case _:
                break
        last = now
    if running is None and len(left) == len(checks):
        running = left.pop(0)  # the process did not even begin it
    if running is not None:
        if line is not None:
            finding = Finding(FAILED, process.how_it_ended(), values={"output": process.output()})
        elif until < deadline:
            finding = Finding(
                FAILED, f"stopped after {running.limit_s * patience:.0f} s", values={"output": process.output()}
            )
        else:
            finding = Finding(NOT_RUN, "stopped, because no time was left; see --budget")
        yield Reported(running, finding, now - last)
    return left


class CheckProcess:
    """A process that runs checks; leaving the context kills it and every process that it has started."""

    def __init__(self, request: Mapping[str, Any]) -> None:
        reader, writer = os.pipe()
        self._reader, self._pending = reader, b""
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "lmtrain.verify.device.process", str(writer), json.dumps(request)],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            pass_fds=(writer,),
            start_new_session=True,  # so that it can be killed with its children
        )
        os.close(writer)

    def next(self, until: float) -> Any:
        """Return the next line, None at the time `until`, or "" when the process has ended."""
        while b"\n" not in self._pending:
            wait_s = until - time.monotonic()
            if wait_s <= 0 or not select.select([self._reader], [], [], wait_s)[0]:
                return None
            chunk = os.read(self._reader, 1 << 16)
            if not chunk:
                return ""
            self._pending += chunk
        line, self._pending = self._pending.split(b"\n", 1)
        return json.loads(line)

    def how_it_ended(self) -> str:
        code = self._process.wait()
        how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
        last = next((line for line in reversed(self.output()) if line.strip()), "")
        return f"its process ended ({how}): {last}"

    def output(self) -> list[str]:
        """Return the last lines that the process has printed."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace").splitlines()[-LAST_LINES:]

    def __enter__(self) -> "CheckProcess":
        return self

    def __exit__(self, *error: object) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended, and so have its children
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        os.close(self._reader)
        self._output.close()
