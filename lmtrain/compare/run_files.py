"""Reads the files of a run that may be another's, may be damaged, and may still be being written."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lmtrain.files.limited import read_limited

MAX_CONFIG_BYTES = 1_000_000  # a config has a few thousand
MAX_DEPTH = 50
MAX_JSON_BYTES = 16_000_000  # environment.json with a long git diff
MAX_METRICS_BYTES = 500_000_000  # a million lines have half of that
MAX_SAMPLE_BYTES = 1_000_000
MAX_COLUMNS = 1000
FastSafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast where PyYAML came with libyaml


def read_config(path: Path) -> dict[str, Any]:
    """The resolved config, flat: `{"optimizer.lr": 0.003, …}`; lists stay whole.

    Raises:
        ValueError: not the plain YAML that lmtrain writes, or made to exhaust the memory.
        OSError: it can't be read.
    """
    content = _read(path, MAX_CONFIG_BYTES)
    try:
        # Only with what lmtrain's own YAML hardly has can one nest deeply or refer to itself.
        marked = any(mark in content for mark in (b"&", b"- -", b"? ", b" " * 2 * MAX_DEPTH))
        if marked or content.count(b"[") + content.count(b"{") > MAX_DEPTH:
            _check_nesting(content)
        config = yaml.load(content, Loader=FastSafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not the YAML of a config ({str(error).splitlines()[0]})") from error
    if not isinstance(config, dict) or not config:
        raise ValueError(f"{path}: not the YAML of a config")
    return dict(_flat(config))


def _check_nesting(content: bytes) -> None:
    depth = 0
    for event in yaml.parse(content, Loader=FastSafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("has an alias, which lmtrain never writes")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep, which a config never is")


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool | list | None)
            yield f"{prefix}{key}", value if plain else str(value)  # a date, say


def read_object(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty if there is none, or it is damaged."""
    try:
        content = json.loads(_read(path, MAX_JSON_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def read_columns(path: Path, warn: Callable[[str], None]) -> dict[str, np.ndarray]:
    """`metrics.jsonl` by metric, with NaN where a line lacks it or has a null; empty columns if there is no file.

    Lines from the first damaged one on are left out; `warn` is told, unless it is the half line at the end that a run
    may just be writing.
    """
    try:
        content = _read(path, MAX_METRICS_BYTES)
    except FileNotFoundError:
        content = b""
    lines = content[: content.rfind(b"\n") + 1].splitlines()  # what follows the last line end is half a line
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")  # in one call: a third of the time
        if not all(type(values) is dict and "step" in values for values in found):
            raise ValueError("not a line of metrics")
        return _columns(found)
    except (ValueError, TypeError, OverflowError, RecursionError):
        sound = _sound(lines)
        warn(f"{path}: line {len(sound) + 1} is damaged; the {len(sound)} lines before it count")
        return _columns(sound)


def _sound(lines: list[bytes]) -> list[dict[str, Any]]:
    """The lines before the first damaged one."""
    found = []
    for line in lines:
        try:
            values = json.loads(line)
            if type(values) is not dict or not math.isfinite(values["step"]):
                break
            found.append({name: math.nan if value is None else float(value) for name, value in values.items()})
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            break
    return found


def _columns(lines: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    names = dict.fromkeys(["step"] + [name for keys in {tuple(line): None for line in lines} for name in keys])
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"{len(names)} metrics")
    columns = {name: np.array([line.get(name) for line in lines], dtype=float) for name in names}
    if np.all(np.diff(columns["step"]) > 0):
        return columns
    # No step twice, and in order, whatever wrote the file: the last line of a step counts.
    _, last = np.unique(columns["step"][::-1], return_index=True)
    return {name: column[::-1][last] for name, column in columns.items()}


def read_text(path: Path) -> str | None:
    try:
        return _read(path, MAX_SAMPLE_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return None


def _read(path: Path, limit: int) -> bytes:
    """Raises FileNotFoundError for what is no plain file, too: a pipe in a stranger's folder would be waited for."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path}: no such file")
    return read_limited(path, limit)
