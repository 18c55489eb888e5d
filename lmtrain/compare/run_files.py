"""Reads the files of a run that may be a stranger's, damaged, or still being written, for everything to rely on."""

import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lmtrain.files.limited import MAX_JSON_BYTES, FastSafeLoader, read_json_limited, read_limited, read_yaml_text
from lmtrain.files.metrics import read_columns
from lmtrain.files.numbers import is_number
from lmtrain.terminal.as_text import printable

MAX_SAMPLE_BYTES = 1_000_000
MAX_KEYS = 2000  # of a config, which has a hundred
LARGEST = 1e100  # of a run's numbers: products and squares of them are still floats
MAX_STEP = 2**53  # a larger float is no exact count
# What the values are that a comparison needs of `result.json` and `environment.json`; null is one that is not known.
KINDS: Mapping[str, type] = {
    "status": str,
    "steps": int,
    "tokens": int,
    "run_id": str,
    "model": dict,
    "model.parameters": int,
    "model.flops_per_token": float,
    "forked_from": dict,
    "forked_from.run": str,
    "forked_from.run_id": str,
    "forked_from.step": int,
    "rerun_of": dict,
    "rerun_of.run": str,
    "rerun_of.run_id": str,
}
IN_WORDS = {str: "a text", int: "a whole number", float: "a number", dict: "an object"}
SEXAGESIMAL = re.compile(r"(:[0-5]?[0-9]){100}")  # a number to YAML 1.1: the time for it grows with the square
# What PyYAML raises for values such as `!!int ''`, `!!bool x` and `!!timestamp x`, beside its own errors.
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def read_config(path: Path) -> dict[str, Any]:
    """Return the resolved config, flat: `{"optimizer.lr": 0.003, …}`; lists stay whole.

    Its values are those that JSON has, numbers that are floats, and NaN, which equals nothing, is a text.

    Raises:
        ValueError: it is not the plain YAML that lmtrain writes, or made to exhaust the memory.
        OSError: it can't be read.
    """
    text = read_yaml_text(path)
    if SEXAGESIMAL.search(text):
        raise ValueError(f"{path}: not the YAML of a config (a number with more than 100 colons)")
    try:
        config = yaml.load(text, Loader=FastSafeLoader)
    except YAML_ERRORS as error:
        reason = str(error).splitlines() or [type(error).__name__]
        raise ValueError(f"{path}: not the YAML of a config ({reason[0]})") from error
    if not isinstance(config, dict) or not config:
        raise ValueError(f"{path}: not the YAML of a config")
    flat = dict(_flat(config))
    if len(flat) > MAX_KEYS:
        raise ValueError(f"{path}: {len(flat):,} keys, which a config never has")
    for key, value in flat.items():
        try:
            flat[key] = _plain(value)
        except OverflowError as error:
            raise ValueError(f"{path}: {key}: a number too large for any setting") from error
    return flat


def read_record(path: Path) -> dict[str, Any]:
    """Return the object of `result.json` or `environment.json`; an empty one if the run has no such file (yet).

    Raises:
        ValueError: it is no JSON object, or has a value of another kind than lmtrain writes; names file and key.
        OSError: it can't be read.
    """
    if not os.path.lexists(path):
        return {}
    content = read_json_limited(path, MAX_JSON_BYTES)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: not a JSON object")
    for key, kind in KINDS.items():
        value = _value_at(content, key)
        if value is not None and not _is_of_kind(value, kind):
            shown = printable(str(value)[:40])
            raise ValueError(f"{path}: {key} is {shown!r}, where {IN_WORDS[kind]} belongs")
    return content


def read_series(path: Path, warn: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Return the columns of `metrics.jsonl` as `read_columns` does, their values finite or NaN.

    Lines whose step is no count are left out, with a line to `warn`.

    Raises:
        ValueError: there are too many bytes or metrics.
        OSError: the file can't be read.
    """
    columns = {printable(name): column for name, column in read_columns(path, warn).items()}
    steps = columns["step"]
    counts = (steps >= 0) & (steps <= MAX_STEP)  # false for NaN
    if not counts.all():
        warn(f"{path}: {np.sum(~counts)} of {len(steps)} lines left out, whose step is no count")
    series = {name: column[counts] for name, column in columns.items()}
    for column in series.values():
        column[~(np.abs(column) <= LARGEST)] = math.nan
    return series


def read_sample(path: Path) -> str | None:
    """Return the text that the run's model wrote; None if there is none."""
    try:
        return read_limited(path, MAX_SAMPLE_BYTES).decode(errors="replace")
    except (OSError, ValueError):
        return None


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{printable(str(key))}.")
        else:
            yield f"{prefix}{printable(str(key))}", value


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: anything else, such as a date, as text.

    Raises:
        OverflowError: a number is too large for a float.
    """
    match value:
        case list():
            return [_plain(item) for item in value]
        case dict():
            return {str(key): _plain(item) for key, item in value.items()} or "{}"
        case str() | bool() | None:
            return value
        case int() | float():
            return str(value) if math.isnan(float(value)) else value
    return str(value)


def _value_at(content: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; None if there is none."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None  # type: ignore[assignment]
    return content


def _is_of_kind(value: Any, kind: type) -> bool:
    if kind not in (int, float):
        return isinstance(value, kind)
    return is_number(value) and abs(value) <= LARGEST and (kind is float or value == int(value))
