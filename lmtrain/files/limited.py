"""Reads files that may be damaged or hostile: limits their size, and refuses JSON and YAML that exhaust memory."""

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

MAX_JSON_BYTES = 16_000_000  # enough for environment.json with a long git diff in which every character is escaped
MAX_YAML_BYTES = 1_000_000  # a config has a few thousand bytes
MAX_YAML_DEPTH = 50
INDENTS = " \t-?:"  # characters that may precede the content of a YAML line
FastSafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times faster if PyYAML was built with libyaml


def open_plain_file(path: Path) -> BufferedReader:
    """Open a file to read its bytes. A pipe or device under the file's name is refused without waiting for it.

    Raises:
        OSError: the file can't be opened, or is not a plain file.
    """
    check_plain(path, path.stat())
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # the file may have been replaced since
    try:
        check_plain(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_plain(path: Path, status: os.stat_result) -> None:
    """Raise FileNotFoundError unless `status` belongs to a plain file."""
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(f"{path}: not a plain file")


def read_limited(path: Path, limit: int) -> bytes:
    """Return the contents of a file of at most `limit` bytes.

    Raises:
        ValueError: the file is larger.
        OSError: the file can't be read, or is not a plain file.
    """
    with open_plain_file(path) as file:
        is_larger = os.fstat(file.fileno()).st_size > limit
        content = b"" if is_larger else file.read(limit + 1)
    if is_larger or len(content) > limit:
        raise ValueError(f"{path}: larger than {limit:,} bytes, the limit for such a file")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one if the file is missing, not JSON, or too large."""
    try:
        content = read_json_limited(path, MAX_JSON_BYTES)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json_limited(path: Path, limit: int) -> Any:
    """Return the value in a JSON file.

    Raises:
        ValueError: the file has more than `limit` bytes, is not JSON, or is nested too deeply. The message names it.
        OSError: the file can't be read.
    """
    content = read_limited(path, limit)
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError(f"{path}: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error


def read_yaml_text(path: Path, limit: int = MAX_YAML_BYTES) -> str:
    """Return the text of a YAML file after checking that a safe loader can load it.

    libyaml crashes on deep nesting, and aliases of aliases fill the memory.

    Raises:
        ValueError: the file has more than `limit` bytes, has an alias, has more than `MAX_YAML_DEPTH` levels, or is
            not YAML. The message names it.
        OSError: the file can't be read.
    """
    try:
        text = read_limited(path, limit).decode()
        if _may_nest_deeply(text):
            _check_events(path, text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    return text


def _may_nest_deeply(text: str) -> bool:
    """Return False for most files, in a tenth of the time that parsing every event needs."""
    indent = max((len(line) - len(line.lstrip(INDENTS)) for line in text.splitlines()), default=0)
    # Each level needs a bracket, or a list or mapping that begins at another column. A byte order mark has no column.
    return "&" in text or "\ufeff" in text or 2 * indent + text.count("[") + text.count("{") >= MAX_YAML_DEPTH


def _check_events(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=FastSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{path}: has an alias (*{event.anchor[:40]}), which lmtrain never writes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise ValueError(f"{path}: nested more than {MAX_YAML_DEPTH} deep, which a config never is")
