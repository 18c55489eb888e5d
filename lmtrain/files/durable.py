"""Writes files and makes folders that a crash can neither lose nor leave half done, and computes checksums."""

import errno
import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from lmtrain.files.limited import open_plain_file
from lmtrain.files.unsupported import UNSUPPORTED, warn_once


def write_atomically(path: Path, text: str | Iterable[str]) -> None:
    """Write a file so that a crash leaves either the old or the new contents; it is on the disk when this returns.

    `text` may be an iterable of parts, which are never all in memory at once.
    """
    partial = path.with_name(f".tmp-{path.name}")
    partial.unlink(missing_ok=True)  # left by a killed process, or a link, which open() would follow
    with partial.open("x", encoding="utf-8") as file:
        file.writelines([text] if isinstance(text, str) else text)
        file.flush()
        flush_to_disk(file.fileno(), path)
    os.replace(partial, path)
    sync(path.parent)


def append_line(path: Path, line: str) -> None:
    """Append a line that is on the disk when this returns; a line that a killed process cut off stays by itself.

    The file is created if it is missing; a link is not followed. The caller keeps other processes from writing to it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)
    try:
        size = os.fstat(descriptor).st_size
        is_cut = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        content = b"\n" * is_cut + f"{line}\n".encode()
        while content:
            content = content[os.write(descriptor, content) :]
        flush_to_disk(descriptor, path)
    finally:
        os.close(descriptor)
    if not size:
        sync(path.parent)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents; they are on the disk when this returns."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        sync(folder.parent)


def sync(path: Path) -> None:
    """Wait until the file's contents, or the folder's entries, are on the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:  # a folder with write but no read permission
        if path.is_dir():
            return
        raise
    try:
        flush_to_disk(descriptor, path)
    finally:
        os.close(descriptor)


def flush_to_disk(descriptor: int, path: Path) -> None:
    """Wait until an open file or folder is on the disk; `path` is for the message.

    A file system without fsync only causes a warning.

    Raises:
        OSError: the disk reports an error.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in UNSUPPORTED | {errno.EBADF}:  # EBADF: from a folder, which is open for reading
            raise
        warn_once(
            "fsync",
            f"{path}: this file system can't confirm that files are on the disk ({error.strerror}), so the newest "
            "files may be lost if the machine crashes",
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of the file's contents as hexadecimal digits."""
    with open_plain_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
