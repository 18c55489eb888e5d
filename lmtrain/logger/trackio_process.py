"""The process for trackio. `lmtrain.logger.trackio` starts it as a script, and it imports nothing of lmtrain.

Its input is JSON lines: the keyword arguments of `follow`, then `{"step", "metrics"}` for each step, and
`{"rewind": STEP}` when the steps after STEP are about to be run again. It finishes when the input ends, because the run
has ended or was killed.
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
    # These signals are meant for the run, which then closes the input.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    failures: list[str] = []  # trackio itself only warns about them

    def note(message: Warning | str, *of: object, **more: object) -> None:
        failures.extend(text for text in [str(message)] if text.startswith("trackio"))

    warnings.simplefilter("always")
    warnings.showwarning = note
    lines = (line for line in sys.stdin if line.endswith("\n"))  # a kill may leave the last line incomplete
    try:
        follow(map(json.loads, lines), **json.loads(next(lines)))
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
    if failures:
        sys.exit(failures[0])


def follow(items: Iterable[dict[str, Any]], init: dict[str, Any], lock: str) -> None:
    """Log items to trackio; `init` are the arguments of `trackio.init`.

    The lock file makes a resumed run wait until the trackio process of a killed run has finished.
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
                run.finish()  # writes the queued steps
            run = None
            forget(init["project"], init["name"], after=item["rewind"])
            continue
        run = run or trackio.init(**init, resume="allow", auto_log_cpu=False, auto_log_gpu=False, embed=False)
        run.log(item["metrics"], step=item["step"])
    if run is not None:
        run.finish()


def forget(project: str, name: str, after: int) -> None:
    """Remove the steps of a run after step `after`; trackio itself can only remove whole runs."""
    from trackio.sqlite_storage import SQLiteStorage

    path = SQLiteStorage.get_project_db_path(project)
    if not path.exists():
        return
    with contextlib.closing(sqlite3.connect(path, timeout=30.0)) as database, database:
        database.execute("DELETE FROM metrics WHERE run_name = ? AND step > ?", (name, after))


if __name__ == "__main__":
    main()
