"""Writing that a crash can't leave half done, and reading what may be damaged."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any


def write_atomically(path: Path, text: str) -> None:
    """The file holds the old text or the new one, whole, whatever happens; the new one is on the disk afterwards."""
    partial = path.with_name(f".tmp-{path.name}")
    partial.unlink(missing_ok=True)  # of a killed process; or a link, which would be followed
    with partial.open("x", encoding="utf-8") as file:
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


def read_json_limited(path: Path, limit: int) -> Any:
    """What a JSON file holds, also one that is damaged or hostile.

    Raises:
        ValueError: it has more than `limit` bytes, or is not JSON, or nested too deeply; names the file.
        OSError: it can't be read.
    """
    content = read_limited(path, limit)
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
