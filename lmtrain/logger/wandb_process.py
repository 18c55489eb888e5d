"""The process for W&B's client. `lmtrain.logger.wandb` starts it as a script, and it imports nothing of lmtrain.

It receives the run's command line, the keyword arguments of `follow`, the metrics of each step, and the run's status
last. It sends a `Reply` when W&B has started, and another when W&B has finished or failed. If the connection ends
without a status, the run was killed, and W&B still finishes.
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
SAMPLES = "samples"
KILLED = "killed"  # the status of a run that sent no status


class Reply(TypedDict):
    """Holds the folder of W&B's files for this run, or the message and traceback of an error."""

    directory: str
    error: str
    traceback: str


def send(connection: Connection, item: Any) -> None:
    """Send an item as JSON; raise ConnectionError if the other process has ended."""
    connection.send_bytes(json.dumps(item, default=str).encode())


def receive(connection: Connection) -> Any:
    """Return the next item; raise EOFError or OSError if the other process has ended."""
    return json.loads(connection.recv_bytes())


def main() -> None:
    # These signals are meant for the run, which then sends its status. Slurm sends the last two to every process.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    sys.argv[:] = receive(connection)  # W&B shows the command line of the run
    try:
        follow(connection, **receive(connection))
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        _answer(connection, Reply(directory="", error=message, traceback=traceback.format_exc()))


def follow(connection: Connection, init: Mapping[str, Any], settings: Mapping[str, Any], links: str | None) -> None:
    """Log the items from the connection to W&B; `links` is a folder that gets a link to the run's files."""
    import wandb

    run = wandb.init(**init, settings=wandb.Settings(**settings))
    # The axis is our own step: W&B's step counts on across resumes, and W&B drops a step that it gets twice.
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
        elif SAMPLES in item:
            rows = [[item[STEP], *sample] for sample in item[SAMPLES]]
            run.log({STEP: item[STEP], SAMPLES: wandb.Table(columns=[STEP, "prompt", "text"], data=rows)})
        else:
            run.log(item)
    run.summary["status"] = status
    run.finish(exit_code=0 if status in ("completed", "pruned") else 1)
    _answer(connection, reply)


def _link(links: Path, files: Path) -> None:
    """Make a link to the run's files in a folder for `wandb leet`, if that folder is writable."""
    place = links / files.name
    with contextlib.suppress(OSError):
        links.mkdir(parents=True, exist_ok=True)
        if place.is_symlink():
            place.unlink()
        place.symlink_to(os.path.relpath(files.resolve(), links.resolve()))


def _answer(connection: Connection, reply: Reply) -> None:
    with contextlib.suppress(ConnectionError):  # a killed run waits for no reply
        send(connection, reply)


def _items(connection: Connection) -> Iterator[dict[str, Any] | str]:
    """Yield metrics until a status has come or the run was killed."""
    item: dict[str, Any] | str = {}
    while not isinstance(item, str):
        try:
            item = receive(connection)
        except (EOFError, OSError):  # also in the middle of a message
            return
        yield item


if __name__ == "__main__":
    main()
