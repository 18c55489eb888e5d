"""Writing that a crash can't leave half done."""

import os
from pathlib import Path


def write_atomically(path: Path, text: str) -> None:
    """The file holds the old text or the new one, whole, whatever happens; the new one is on the disk afterwards."""
    partial = path.with_name(f".tmp-{path.name}")
    with partial.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Waits until the file's contents, or the folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
