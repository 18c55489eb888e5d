"""Reads and checks a run's files, which may be hostile, damaged or still being written."""

import contextlib
import itertools
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
from lmtrain.logger.samples import SAMPLES_FILE, read_samples
from lmtrain.terminal.as_text import printable

MAX_SAMPLE_BYTES, MAX_SAMPLES_BYTES = 1_000_000, 32_000_000
MAX_KEYS = 2000  # a normal config has about a hundred
LARGEST = 1e100  # squares and products of such numbers are still finite floats
MAX_STEP = 2**53  # larger floats do not count exactly
# The types of the values in `result.json` and `environment.json` that a comparison uses; null means unknown.
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
    "forked_from.config": dict,
    "forked_from.forked_from": dict,
    "rerun_of": dict,
    "rerun_of.run": str,
    "rerun_of.run_id": str,
}
IN_WORDS = {str: "a text", int: "a whole number", float: "a number", dict: "an object"}
SEXAGESIMAL = re.compile(r"(:[0-5]?[0-9]){100}")  # a number in YAML 1.1, and the time to read it is quadratic
# The errors that PyYAML raises, also for values such as `!!int ''`, `!!bool x` and `!!timestamp x`.
YAML_ERRORS = (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError)


def read_config(path: Path) -> dict[str, Any]:
    """Return the resolved config with dotted keys: `{"optimizer.lr": 0.003, …}`.

    The values are JSON values; lists are not flattened. NaN becomes a text, because it does not equal itself.

    Raises:
        ValueError: the file is not plain YAML as lmtrain writes it, or it is made to exhaust time or memory.
        OSError: the file cannot be read.
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
    try:
        return flat_config(config)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def flat_config(config: Mapping[Any, Any]) -> dict[str, Any]:
    """Return a nested config with dotted keys, as `read_config` does.

    Raises:
        ValueError: it has more keys than any config, or a number that is too large.
    """
    flat = dict(_flat(config))
    if len(flat) > MAX_KEYS:
        raise ValueError(f"{len(flat):,} keys, more than any config has")
    for key, value in flat.items():
        try:
            flat[key] = _plain(value)
        except OverflowError as error:
            raise ValueError(f"{key}: a number too large for any setting") from error
    return flat


def read_record(path: Path) -> dict[str, Any]:
    """Return the content of `result.json` or `environment.json`; empty if the file does not exist (yet).

    Raises:
        ValueError: the file is no JSON object, or a value has a wrong type; the message names file and key.
        OSError: the file cannot be read.
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
            raise ValueError(f"{path}: {key} is {shown!r}, not {IN_WORDS[kind]}")
    return content


def read_series(path: Path, warn: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Return the columns of `metrics.jsonl`, with NaN for values that are missing or too large.

    Lines with an invalid step are left out and reported through `warn`.

    Raises:
        ValueError: the file has too many bytes or metrics.
        OSError: the file cannot be read.
    """
    columns = {printable(name): column for name, column in read_columns(path, warn).items()}
    steps = columns["step"]
    counts = (steps >= 0) & (steps <= MAX_STEP)  # false for NaN
    if not counts.all():
        warn(f"{path}: left out {np.sum(~counts)} of {len(steps)} lines, whose step is not a valid number")
    series = {name: column[counts] for name, column in columns.items()}
    for column in series.values():
        column[~(np.abs(column) <= LARGEST)] = math.nan
    return series


def read_sample(run: Path) -> str | None:
    """Return texts that the run's model wrote: the last ones in training, or else the one at the end; None without."""
    with contextlib.suppress(OSError, ValueError):
        if samples := read_samples(run / SAMPLES_FILE, MAX_SAMPLES_BYTES):
            last = samples[-1]["step"]
            newest = itertools.takewhile(lambda sample: sample["step"] == last, reversed(samples))
            texts = [f"{sample['prompt']}▸{sample['text']}" for sample in newest]
            return f"after step {last}\n\n" + "\n\n".join(reversed(texts))
    with contextlib.suppress(OSError, ValueError):
        return read_limited(run / "sample.txt", MAX_SAMPLE_BYTES).decode(errors="replace")
    return None


def _flat(node: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in node.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}{printable(str(key))}.")
        else:
            yield f"{prefix}{printable(str(key))}", value


def _plain(value: Any) -> Any:
    """Return a value as a JSON value; other types, such as dates, become text.

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
    """Return the value of a dotted key; None if it is missing."""
    for part in key.split("."):
        content = content.get(part) if isinstance(content, dict) else None  # type: ignore[assignment]
    return content


def _is_of_kind(value: Any, kind: type) -> bool:
    if kind not in (int, float):
        return isinstance(value, kind)
    return is_number(value) and abs(value) <= LARGEST and (kind is float or value == int(value))
