"""Keeps the compute budget of a folder: a ledger of every command, with the seconds that it took."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lmtrain.errors import ConfigError
from lmtrain.files.durable import append_line, make_folder
from lmtrain.files.limited import open_plain_file
from lmtrain.files.lock import FileLock, locked_folder
from lmtrain.files.numbers import is_number
from lmtrain.terminal.units import duration

LEDGER = "ledger.jsonl"


class ComputeBudget:
    """The seconds that commands may take in a folder, in all servers that were ever started there.

    The ledger is append-only: a line when a command starts, and a line when it ends. A command without an end counts
    up to now while its server is alive, and up to the last change of its log if the server was killed.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        make_folder(folder)
        self.path, self.seconds = folder / LEDGER, seconds
        self._locks: dict[str, FileLock] = {}  # of the commands of this server; the kernel frees them if it is killed

    def spent(self) -> float:
        """Return the seconds of all commands, also of those that run now."""
        started: dict[str, float] = {}
        total = 0.0
        for line in self._lines():
            job = str(line.get("job"))
            if line.get("event") == "started" and is_number(line.get("time")):
                started[job] = float(line["time"])
            elif line.get("event") == "ended" and is_number(line.get("seconds")) and started.pop(job, None) is not None:
                total += max(0.0, float(line["seconds"]))
        return total + sum(max(0.0, self._last_sign_of_life(job) - begun) for job, begun in started.items())

    def left(self) -> float:
        """Return the seconds left."""
        return self.seconds - self.spent()

    def check(self) -> None:
        """Raise ConfigError if nothing is left."""
        if self.left() <= 0:
            raise ConfigError(
                f"the budget of {duration(self.seconds)} is spent ({duration(self.spent())}, see {self.path}); the "
                "person who started this server can give it more with --hours"
            )

    def new_job(self, command: list[str]) -> str:
        """Write that a command starts, and return its name, which no earlier command has."""
        with locked_folder(self.path.parent):
            job = next(name for name in self._names() if not any(map(os.path.lexists, self._files_of(name))))
            lock = FileLock(self._lock_file(job))
            lock.acquire()
            self._locks[job] = lock
            self._append({"event": "started", "job": job, "time": time.time(), "command": command})
        return job

    def end_job(self, job: str, seconds: float, exit_code: int) -> None:
        """Write that a command has ended."""
        with locked_folder(self.path.parent):
            self._append({"event": "ended", "job": job, "seconds": round(seconds, 3), "exit_code": exit_code})
            self._locks.pop(job).release()
            self._lock_file(job).unlink(missing_ok=True)

    def log_file(self, job: str) -> Path:
        """Return the file for the output of a command."""
        return self.path.with_name(f"{job}.log")

    def _lock_file(self, job: str) -> Path:
        return self.path.with_name(f"{job}.lock")

    def _files_of(self, job: str) -> tuple[Path, ...]:
        return self.path.with_name(job), self.log_file(job), self._lock_file(job)

    def _names(self) -> Iterator[str]:
        """Yield names after those in the ledger. It may have lost lines, so that one of these can be in use."""
        number = sum(line.get("event") == "started" for line in self._lines())
        while True:
            number += 1
            yield f"job-{number}"

    def _last_sign_of_life(self, job: str) -> float:
        if FileLock(self._lock_file(job)).is_held():
            return time.time()
        log = self.log_file(job)
        return log.stat().st_mtime if log.is_file() else 0.0

    def _append(self, content: dict[str, Any]) -> None:
        append_line(self.path, json.dumps(content))

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with open_plain_file(self.path) as file:
            texts = file.read().decode("utf-8", "replace").splitlines()
        return [content for text in texts if isinstance(content := _json_or_none(text), dict)]


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):  # a line that a crash cut off
        return None
