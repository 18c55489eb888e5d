"""The process that W&B's client runs in, started as a script by `lmtrain.logger.wandb`; it imports nothing of lmtrain.

It receives the run's command line, the keyword arguments of `follow`, then each step's metrics, and the run's status
last. A `Reply` follows when W&B has started, and another when it has finished or failed. A connection that ends without
a status means that the run was killed: W&B finishes all the same.
"""

import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from multiprocessing.connection import Connection
from typing import Any, TypedDict

STEP = "step"
KILLED = "killed"  # the status of a run that could not say how it ended


class Reply(TypedDict):
    """Where W&B's files of this run are, or what went wrong: an exception's message and traceback."""

    directory: str
    error: str
    traceback: str


def main() -> None:
    # These are for the run, which then says how it ended.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    connection = Connection(int(sys.argv[1]))
    sys.argv[:] = connection.recv()  # W&B shows it
    try:
        follow(connection, **connection.recv())
    except Exception as error:
        message = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        connection.send(Reply(directory="", error=message, traceback=traceback.format_exc()))


def follow(connection: Connection, init: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    import wandb

    run = wandb.init(**init, settings=wandb.Settings(**settings))
    # Our own axis: W&B's step goes on counting across resumes, and drops what comes again.
    run.define_metric(STEP)
    run.define_metric("*", step_metric=STEP)
    reply = Reply(directory=run.settings.sync_dir, error="", traceback="")
    connection.send(reply)
    status = KILLED
    for item in _items(connection):
        if isinstance(item, str):
            status = item
        else:
            run.log(item)
    run.summary["status"] = status
    run.finish(exit_code=0 if status == "completed" else 1)
    if status != KILLED:
        connection.send(reply)


def _items(connection: Connection) -> Iterator[dict[str, float] | str]:
    """Metrics, up to a status or the run's death."""
    item: dict[str, float] | str = {}
    while not isinstance(item, str):
        try:
            item = connection.recv()
        except (EOFError, ConnectionError):
            return
        yield item


if __name__ == "__main__":
    main()
