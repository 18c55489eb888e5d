"""Makes a folder that is either complete or not there."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lmtrain.files.durable import make_folder, sync


@contextmanager
def complete_folder(path: Path, option: str) -> Iterator[Path]:
    """Give an empty folder beside `path`, which gets that name when the `with` block ends without an error.

    An error or Ctrl-C leaves nothing; a killed process leaves the other folder, whose name begins with `.tmp-`.

    Raises:
        ValueError: `path` exists and is not an empty folder; `option` is what it was given with.
        OSError: The folder can't be made.
    """
    refuse_existing(path, option)
    make_folder(path.absolute().parent)
    partial = path.absolute().with_name(f".tmp-{path.absolute().name}-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed process with the same number
    partial.mkdir()
    try:
        yield partial
        sync(partial)
        refuse_existing(path, option)  # another process may have made it since
        os.rename(partial, path)  # an empty folder is replaced
        sync(path.absolute().parent)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def refuse_existing(path: Path, option: str) -> None:
    """Raise ValueError unless the path is an empty folder or does not exist."""
    if path.is_symlink() or (path.exists() and not path.is_dir()):
        raise ValueError(f"{option}{path}: exists and is not a folder; give another name")
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"{option}{path}: exists already and is not empty; give another folder")
