"""Writing that a crash can't leave half done, and reading what may be damaged."""

import hashlib
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


def sha256_of(path: Path) -> str:
    """Of the file's contents, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_limited(path: Path, limit: int) -> bytes:
    """The whole of a file that has a size to be expected, so that a damaged or hostile one can't fill the memory.

    Raises:
        ValueError: it has more than `limit` bytes.
    """
    with path.open("rb") as file:
        content = file.read(limit + 1)
    if len(content) > limit:
        raise ValueError(f"{path}: larger than {limit:,} bytes, which such a file never is")
    return content
