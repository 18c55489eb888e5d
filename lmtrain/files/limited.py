"""Reads files that may be damaged or hostile, up to a size."""

import json
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 16_000_000  # such a diff, where each character is escaped


def read_json(path: Path) -> dict[str, Any]:
    """The file's object; empty if it is not there, not JSON, or larger than such a file is."""
    try:
        content = read_json_limited(path, MAX_JSON_BYTES)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


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
