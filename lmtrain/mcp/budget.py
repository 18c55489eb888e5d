"""Keeps the compute budget of a folder: a ledger of every command, with the seconds that it took."""

import json
import os
import time
from pathlib import Path
from typing import Any

from lmtrain.errors import ConfigError
from lmtrain.files.durable import flush_to_disk, make_folder
from lmtrain.files.limited import open_plain_file
from lmtrain.files.lock import locked_folder
from lmtrain.terminal.units import duration

LEDGER = "ledger.jsonl"


class Budget:
    """The seconds that commands may take in a folder, in all servers that were ever started there.

    The ledger is append-only: a line when a command starts, and a line when it ends. A command without an end, because
    the server was killed, counts until its log was last written.
    """

    def __init__(self, folder: Path, seconds: float) -> None:
        make_folder(folder)
        self.path, self.seconds = folder / LEDGER, seconds

    def spent(self) -> float:
        """Return the seconds of all commands that have ended, or whose server was killed."""
        started: dict[str, dict[str, Any]] = {}
        total = 0.0
        for line in self._lines():
            if line.get("event") == "started":
                started[line["job"]] = line
            elif line.get("event") == "ended" and started.pop(line.get("job", ""), None):
                total += float(line["seconds"])
        for job, line in started.items():
            if not _is_alive(int(line["server"])):
                log = self.path.with_name(f"{job}.log")
                total += max(0.0, log.stat().st_mtime - float(line["time"])) if log.is_file() else 0.0
        return total

    def left(self, running: float = 0.0) -> float:
        """Return the seconds left, if a command has already run for `running` seconds."""
        return self.seconds - self.spent() - running

    def check(self) -> None:
        """Raise ConfigError if nothing is left."""
        if self.left() <= 0:
            raise ConfigError(
                f"the budget of {duration(self.seconds)} is spent ({duration(self.spent())}, see {self.path}); the "
                "person who started this server can give it more with --hours"
            )

    def new_job(self, command: list[str]) -> str:
        """Write that a command starts, and return its name."""
        with locked_folder(self.path.parent):
            count = sum(line.get("event") == "started" for line in self._lines())
            job = f"job-{count + 1}"
            self._append(
                {"event": "started", "job": job, "time": time.time(), "server": os.getpid(), "command": command}
            )
        return job

    def end_job(self, job: str, seconds: float, exit_code: int) -> None:
        with locked_folder(self.path.parent):
            self._append({"event": "ended", "job": job, "seconds": round(seconds, 3), "exit_code": exit_code})

    def _append(self, content: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(content) + "\n")
            file.flush()
            flush_to_disk(file.fileno(), self.path)

    def _lines(self) -> list[dict[str, Any]]:
        if not self.path.exists():
            return []
        with open_plain_file(self.path) as file:
            texts = file.read().decode("utf-8", "replace").splitlines()
        return [content for text in texts if isinstance(content := _json_or_none(text), dict)]


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:  # a line that a crash cut off
        return None


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
