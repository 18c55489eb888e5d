"""Reads files that may be damaged or hostile: up to a size, and JSON and YAML without what exhausts the memory."""

import json
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Any

import yaml

MAX_JSON_BYTES = 16_000_000  # environment.json with a long git diff, where each character is escaped
MAX_YAML_BYTES = 1_000_000  # a config has a few thousand
MAX_YAML_DEPTH = 50
INDENTS = " \t-?:"  # what a line of YAML may begin with, apart from the content
FastSafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML came with libyaml


def open_plain_file(path: Path) -> BufferedReader:
    """Open a file to read its bytes; do not wait for a pipe, or wake a device, that stands in a file's place.

    Raises:
        OSError: it can't be opened, or is no plain file.
    """
    check_plain(path, path.stat())
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # it may have been replaced since
    try:
        check_plain(path, os.fstat(descriptor))
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def check_plain(path: Path, status: os.stat_result) -> None:
    """Raise FileNotFoundError unless it is the status of a plain file."""
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(f"{path}: not a plain file")


def read_limited(path: Path, limit: int) -> bytes:
    """Return the whole file, which must not have more than `limit` bytes.

    Raises:
        ValueError: it has more.
        OSError: it can't be read, or is no plain file.
    """
    with open_plain_file(path) as file:
        is_larger = os.fstat(file.fileno()).st_size > limit
        content = b"" if is_larger else file.read(limit + 1)
    if is_larger or len(content) > limit:
        raise ValueError(f"{path}: larger than {limit:,} bytes, which such a file never is")
    return content


def read_json(path: Path) -> dict[str, Any]:
    """Return the file's object; an empty one if it is not there, not JSON, or larger than such a file is."""
    try:
        content = read_json_limited(path, MAX_JSON_BYTES)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def read_json_limited(path: Path, limit: int) -> Any:
    """Return what a JSON file holds.

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


def read_yaml_text(path: Path, limit: int = MAX_YAML_BYTES) -> str:
    """Return the text of a YAML file that any safe loader may then load.

    libyaml crashes on deep nesting, and aliases of aliases fill the memory.

    Raises:
        ValueError: it has more than `limit` bytes, an alias, or more than `MAX_YAML_DEPTH` levels, or is not YAML;
            names the file.
        OSError: it can't be read.
    """
    try:
        text = read_limited(path, limit).decode()
        if _may_nest_deeply(text):
            _check_events(path, text)
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"{path}: not YAML ({str(error).splitlines()[0]})") from error
    return text


def _may_nest_deeply(text: str) -> bool:
    """Return False for most files, at a tenth of the time that it takes to look at every event."""
    indent = max((len(line) - len(line.lstrip(INDENTS)) for line in text.splitlines()), default=0)
    # A level is a bracket, or a list or a mapping that begins at a column of its own; a byte order mark takes none.
    return "&" in text or "\ufeff" in text or 2 * indent + text.count("[") + text.count("{") >= MAX_YAML_DEPTH


def _check_events(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=FastSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"{path}: has an alias (*{event.anchor[:40]}), which lmtrain never writes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_YAML_DEPTH:
            raise ValueError(f"{path}: nested more than {MAX_YAML_DEPTH} deep, which a config never is")
