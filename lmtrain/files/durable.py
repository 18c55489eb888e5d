"""Writes files that a crash can't leave half done, makes folders that it can't lose, and takes checksums."""

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from lmtrain.files.limited import open_plain_file
from lmtrain.files.unsupported import UNSUPPORTED, warn_once


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write a file that a crash leaves as it was or as it is now; it is on the disk when this returns.

    `text` may come in parts, which are then never in memory together.
    """
    partial = path.with_name(f".tmp-{path.name}")
    partial.unlink(missing_ok=True)  # of a killed process; or a link, which would be followed
    with partial.open("x", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)
        file.flush()
        flush_to_disk(file.fileno(), path)
    os.replace(partial, path)
    sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; they are on the disk when this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until the file's contents, or the folder's entries, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder that may be written but not listed
        if path.is_dir():
            return
        raise
    try:
        flush_to_disk(descriptor, path)
    finally:
        os.close(descriptor)


def flush_to_disk(descriptor: int, path: Path) -> None:
    """Wait until what was written to an open file or folder is on the disk; `path` is for the message.

    Raises:
        OSError: the disk refuses. A file system that has no such call is warned of.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EBADF}:  # the last: of a folder, which is open for reading
            raise
        warn_once(
            "fsync",
            f"{path}: this file system can't say when files are on the disk ({error.strerror}); the newest ones may be "
            "lost if the machine crashes",
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file's contents as hexadecimal digits."""
    with open_plain_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
