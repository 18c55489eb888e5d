"""Reads the same checkpoint in all processes of a run, although their hosts may see a shared folder with a delay."""

import hashlib
import time
from collections.abc import Callable

from lmtrain.checkpoint.files import MANIFEST, Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.errors import BrokenCheckpointError
from lmtrain.parallel.base import Parallel

PATIENCE_S = 90.0  # a network file system may show a new folder to other hosts only after a minute
POLL_S = 0.2


def load_together(
    folder: CheckpointFolder, parallel: Parallel, find: Callable[[], Checkpoint | None], topic: str
) -> Checkpoint | None:
    """Return the checkpoint that `find` returns in the first process; the others read the same one.

    Only the first one compares the hashes of all files, which may take long. `topic` is new for each checkpoint.

    Raises:
        ValueError: Another process does not see it in time.
    """
    found = find() if parallel.world.is_first else None
    chosen = parallel.after_first(
        topic, lambda: None if found is None else _identity(folder, found.state["train"]["step"])
    )
    if parallel.world.is_first or chosen is None:
        return found
    step = int(chosen[0])
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            if _identity(folder, step) == chosen:
                return load_checkpoint(folder.at(step), compare_hashes=False)
        except (OSError, BrokenCheckpointError) as error:
            fault = f" ({error})"
        else:
            fault = ""
        if time.monotonic() > end:
            raise ValueError(
                f"{folder.at(step)}: {parallel.world} does not see the checkpoint of rank 0{fault}; the run directory "
                "must be a folder that all hosts share"
            )
        time.sleep(POLL_S)


def _identity(folder: CheckpointFolder, step: int) -> list[str]:
    """Return what tells a checkpoint from any other: its step, and the hash of its manifest, which has all hashes."""
    return [str(step), hashlib.sha256((folder.at(step) / MANIFEST).read_bytes()).hexdigest()]
