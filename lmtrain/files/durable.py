"""Writes files so that a crash can't leave them half done, and takes their checksums."""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from lmtrain.files.limited import open_plain_file


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write a file that a crash leaves as it was or as it is now; it is on the disk when this returns.

    `text` may come in parts, which are then never in memory together.
    """
    partial = path.with_name(f".tmp-{path.name}")
    partial.unlink(missing_ok=True)  # of a killed process; or a link, which would be followed
    with partial.open("x", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(partial, path)


def sync(path: Path) -> None:
    """Wait until the file's contents, or the folder's entries, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file's contents as hexadecimal digits."""
    with open_plain_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
