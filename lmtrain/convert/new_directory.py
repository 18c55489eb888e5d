"""Leaves nothing behind if a run directory could not be written."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def empty_again_after_error(run_dir: Path, *, existed: bool) -> Iterator[None]:
    """After an error in the `with` block, empty the directory again, or remove it if it did not exist before."""
    try:
        yield
    except BaseException:
        for path in run_dir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        if not existed:
            run_dir.rmdir()
        raise
