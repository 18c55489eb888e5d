"""Reads `metrics.jsonl`: all of its lines, its columns, or the newest values of a run that goes on."""

import json
import math
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lmtrain.files.limited import read_limited

if TYPE_CHECKING:
    import numpy as np

# Measured by a clock, or of the process and not of the training: they differ between two runs of the same bits.
MEASURED = frozenset({"step_time_ms", "tokens_per_second", "seconds", "memory_gb", "mfu"})
MAX_BYTES = 500_000_000  # a million lines have half of that
MAX_COLUMNS = 1000
TAIL_BYTES = 16_000  # some fifty lines, of which one has a validation loss


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines before the first damaged one, such as a last one cut short by a kill, with NaN for null."""
    return _intact(path.read_bytes().splitlines())


def read_columns(path: Path, warn: Callable[[str], None]) -> "dict[str, np.ndarray]":
    """Return each metric as a column, with NaN where a line lacks it or has a null; empty columns without a file.

    The file may be a stranger's. `warn` is called if a line is damaged, except for the half line at the end that a run
    may be writing now.

    Raises:
        ValueError: there are too many bytes or metrics.
        OSError: the file can't be read.
    """
    try:
        content = read_limited(path, MAX_BYTES)
    except FileNotFoundError:
        content = b""
    lines = content[: content.rfind(b"\n") + 1].splitlines()  # what follows the last line end is half a line
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")  # in one call: a third of the time
        if not all(type(values) is dict and values.get("step") is not None for values in found):
            raise ValueError("not a line of metrics")
        return _columns(found)
    except (ValueError, TypeError, OverflowError, RecursionError):
        intact = _intact(lines)
        warn(f"{path}: line {len(intact) + 1} is damaged; the {len(intact)} lines before it count")
        return _columns(intact)


def read_newest(path: Path) -> dict[str, float | None]:
    """Return the newest value of each metric in the last lines, of a run that may go on; empty without a file."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            tail = file.read()
    except OSError:
        return {}
    newest: dict[str, float | None] = {}
    for line in tail.split(b"\n")[1 if start else 0 : -1]:  # whole lines
        try:
            newest |= json.loads(line)
        except (ValueError, TypeError):
            continue
    return newest


def _intact(lines: Iterable[bytes]) -> list[dict[str, float]]:
    """Return the lines before the first that is not an object of numbers with a finite step, with NaN for null."""
    found = []
    for line in lines:
        try:
            values = json.loads(line)
            if type(values) is not dict or not math.isfinite(values["step"]):
                break
            values = {name: math.nan if value is None else value for name, value in values.items()}
            for value in values.values():
                float(value)
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
            break
        found.append(values)
    return found


def _columns(lines: list[dict[str, Any]]) -> "dict[str, np.ndarray]":
    import numpy as np  # for columns alone: a sweep reads lines, and starts without it

    names = dict.fromkeys(["step"] + [name for keys in {tuple(line): None for line in lines} for name in keys])
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"{len(names)} metrics")
    columns = {name: np.array([line.get(name) for line in lines], dtype=float) for name in names}
    if np.all(np.diff(columns["step"]) > 0):
        return columns
    # No step twice, and in order, whoever wrote the file: the last line of a step counts.
    _, last = np.unique(columns["step"][::-1], return_index=True)
    return {name: column[::-1][last] for name, column in columns.items()}
