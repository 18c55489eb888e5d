"""The process that trackio runs in, started as a script by `lmtrain.logger.trackio`; it imports nothing of lmtrain.

Its input is JSON, a line each: the keyword arguments of `follow`, then `{"step", "metrics"}` for each step, and
`{"rewind": STEP}` where the steps after one are about to be run again. It finishes where the input ends, with the run
or with its death.
"""

import contextlib
import fcntl
import json
import signal
import sqlite3
import sys
import warnings
from collections.abc import Iterable
from typing import Any


def main() -> None:
    # These are for the run, which then ends the input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    failures: list[str] = []  # which trackio, by itself, only warns of

    def note(message: Warning | str, *of: object, **more: object) -> None:
        failures.extend(text for text in [str(message)] if text.startswith("trackio"))

    warnings.simplefilter("always")
    warnings.showwarning = note
    lines = (line for line in sys.stdin if line.endswith("\n"))  # a kill may cut the last one
    try:
        follow(map(json.loads, lines), **json.loads(next(lines)))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if failures:
        sys.exit(failures[0])


def follow(items: Iterable[dict[str, Any]], init: dict[str, Any], lock: str) -> None:
    """Log items to trackio; `init` is for `trackio.init`.

    The file `lock` keeps a resumed run from the process of its killed predecessor.
    """
    import trackio

    with open(lock, "a", encoding="utf-8") as file:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        _follow(items, init, trackio)


def _follow(items: Iterable[dict[str, Any]], init: dict[str, Any], trackio: Any) -> None:
    run: Any = None
    for item in items:
        if "rewind" in item:
            if run is not None:
                run.finish()  # which writes what is queued
            run = None
            forget(init["project"], init["name"], after=item["rewind"])
            continue
        run = run or trackio.init(**init, resume="allow", auto_log_cpu=False, auto_log_gpu=False, embed=False)
        run.log(item["metrics"], step=item["step"])
    if run is not None:
        run.finish()


def forget(project: str, name: str, after: int) -> None:
    """Remove the run's steps after one; trackio's own interface can only remove whole runs."""
    from trackio.sqlite_storage import SQLiteStorage

    path = SQLiteStorage.get_project_db_path(project)
    if not path.exists():
        return
    with contextlib.closing(sqlite3.connect(path, timeout=30.0)) as database, database:
        database.execute("DELETE FROM metrics WHERE run_name = ? AND step > ?", (name, after))


if __name__ == "__main__":
    main()
