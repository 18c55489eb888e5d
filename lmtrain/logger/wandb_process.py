"""The process that W&B's client runs in, started as a script by `lmtrain.logger.wandb`; it imports nothing of lmtrain.

It receives the run's command line, the keyword arguments of `follow`, then each step's metrics, and the run's status
last. A `Reply` follows when W&B has started, and another when it has finished or failed. A connection that ends without
a status means that the run was killed: W&B finishes all the same.
"""

import contextlib
import json
import os
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypedDict

STEP = "step"
KILLED = "killed"  # the status of a run that could not say how it ended


class Reply(TypedDict):
    """Where W&B's files of this run are, or what went wrong: an exception's message and traceback."""

    directory: str
    error: str
    traceback: str


def send(connection: Connection, item: Any) -> None:
    """Send an item as JSON. Raises ConnectionError if the other process has ended."""
    connection.send_bytes(json.dumps(item, default=str).encode())


def receive(connection: Connection) -> Any:
    """Return the next item. Raises EOFError or OSError if the other process has ended."""
    return json.loads(connection.recv_bytes())


def main() -> None:
    # These are for the run, which then says how it ended.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # Slurm sends its warning, the last, to every process
    connection = Connection(int(sys.argv[1]))
    sys.argv[:] = receive(connection)  # W&B shows it
    try:
        follow(connection, **receive(connection))
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        _answer(connection, Reply(directory="", error=message, traceback=traceback.format_exc()))


def follow(connection: Connection, init: Mapping[str, Any], settings: Mapping[str, Any], links: str | None) -> None:
    """Log to W&B what comes through the connection; `links` is a folder that gets a link to the run's files."""
    import wandb

    run = wandb.init(**init, settings=wandb.Settings(**settings))
    # Our own axis: W&B's step goes on counting across resumes, and drops what comes again.
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    if links:
        _link(Path(links), Path(run.settings.sync_dir))
    reply = Reply(directory=run.settings.sync_dir, error="", traceback="")
    _answer(connection, reply)
    status = KILLED
    for item in _items(connection):
        if isinstance(item, str):
            status = item
        else:
            run.log(item)
    run.summary["status"] = status
    run.finish(exit_code=0 if status in ("completed", "pruned") else 1)
    _answer(connection, reply)


def _link(links: Path, files: Path) -> None:
    """Link a run's files into a folder that `wandb leet` shows, if that folder can be written."""
    place = links / files.name
    with contextlib.suppress(OSError):
        links.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.symlink_to(os.path.relpath(files.resolve(), links.resolve()))


def _answer(connection: Connection, reply: Reply) -> None:
    with contextlib.suppress(ConnectionError):  # a run that was killed waits for none
        send(connection, reply)


def _items(connection: Connection) -> Iterator[dict[str, float] | str]:
    """Yield metrics, up to a status or the run's death."""
    item: dict[str, float] | str = {}
    while not isinstance(item, str):
        try:
            item = receive(connection)
        except (EOFError, OSError):  # also in the middle of a message
            return
        yield item


if __name__ == "__main__":
    main()
