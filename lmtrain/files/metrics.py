"""Reads `metrics.jsonl`: all of its lines, its columns, or the newest values of an active run."""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from lmtrain.files.limited import open_plain_file, read_limited
from lmtrain.files.numbers import is_number

if TYPE_CHECKING:
    import numpy as np

Line = dict[str, float | None]

# Metrics of the clock or the process, not of the training. They differ even between two bit-identical runs.
MEASURED = frozenset(
    (
        *("step_time_ms", "tokens_per_second", "seconds", "memory_gb", "mfu"),
        *("ranks/slowest", "ranks/slowest_ms", "ranks/fastest_ms"),
    )
)
MAX_BYTES = 500_000_000  # twice the size of a million lines
MAX_COLUMNS = 1000
MAX_LINE_BYTES = 1_000_000
TAIL_BYTES = 16_000  # about fifty lines, enough to include one with a validation loss


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the valid lines of a file, with NaN for null; other lines are left out."""
    return [_with_nan(values) for _, values in metric_lines(path)]


def metric_lines(path: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[tuple[str, Line]]:
    """Yield each valid line as text and as an object; only one line is in memory at a time.

    Invalid lines are left out, with one call of `warn` at the end. A killed run may leave half a line at the end of
    the file; it is left out without a warning.

    Raises:
        OSError: the file can't be read.
    """
    with open_plain_file(path) as file:
        yield from _valid_lines(path, _lines(file), warn)


def read_columns(path: Path, warn: Callable[[str], None]) -> "dict[str, np.ndarray]":
    """Return each metric as a column, with NaN where a line lacks it or has a null; empty columns without a file.

    The file may come from anywhere. Invalid lines are left out, with one call of `warn`. Half a line at the end, which
    an active run may be writing, is left out without a warning.

    Raises:
        ValueError: the file has too many bytes or metrics.
        OSError: the file can't be read.
    """
    import numpy as np  # only for columns: a sweep reads lines, and starts faster without numpy

    try:
        content = read_limited(path, MAX_BYTES)
    except FileNotFoundError:
        content = b""
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)  # the rest may be half a line
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")  # one call needs a third of the time
        has_text = any(mark in content for mark in (b': "', b':"'))  # numpy would turn the text "1" into a number
        if has_text or not all(type(values) is dict and is_number(values.get("step")) for values in found):
            raise ValueError("not a line of metrics")
        columns = _columns(found)
        steps = columns["step"]
        if not (np.isfinite(steps).all() and (steps == np.floor(steps)).all()):
            raise ValueError("not a step")
        return columns
    except (ValueError, TypeError, OverflowError, RecursionError):
        return _columns([values for _, values in _valid_lines(path, lines, warn)])


def read_newest(path: Path) -> Line:
    """Return the newest value of each metric in the last lines of a file; empty without a file.

    The run may be active, so half a line at the end is ignored.
    """
    try:
        with open_plain_file(path) as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES)
            file.seek(start)
            tail = file.read()
    except OSError:
        return {}
    newest: Line = {}
    for line in tail.split(b"\n")[1 if start else 0 : -1]:  # whole lines
        if found := _parsed(line):
            newest |= found[1]
    return newest


def _with_nan(line: Line) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in line.items()}


def _valid_lines(path: Path, lines: Iterable[bytes], warn: Callable[[str], None]) -> Iterator[tuple[str, Line]]:
    """Yield the valid lines; warn once about the others."""
    first, others = 0, 0
    for number, line in enumerate(lines, start=1):
        if found := _parsed(line):
            yield found
        elif line.endswith(b"\n"):  # without it, this is the half line that a killed run has left
            others += bool(first)
            first = first or number
    if first:
        which = f"line {first} and {others} more are not lines" if others else f"line {first} is not a line"
        warn(f"{path}: {which} of metrics; left out")


def _parsed(line: bytes) -> tuple[str, Line] | None:
    """Return a line as text and as an object; None unless it is an object of numbers and nulls with a whole step."""
    try:
        text = line.decode()
        values = json.loads(text)
        if type(values) is not dict or not is_number(values["step"]) or values["step"] != int(values["step"]):
            return None
        for value in values.values():
            if value is not None:
                math.isfinite(value)  # raises for a value that is not a number or too large for a float
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return text, values


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file, with an empty line for each one that is longer than `MAX_LINE_BYTES`."""
    while line := file.readline(MAX_LINE_BYTES):
        too_long = False
        while len(line) == MAX_LINE_BYTES and not line.endswith(b"\n"):
            too_long, line = True, file.readline(MAX_LINE_BYTES)
        yield b"\n" if too_long else line


def _columns(lines: list[dict[str, Any]]) -> "dict[str, np.ndarray]":
    import numpy as np

    names = dict.fromkeys(["step"] + [name for keys in {tuple(line): None for line in lines} for name in keys])
    if len(names) > MAX_COLUMNS:
        raise ValueError(f"{len(names)} metrics")
    columns = {name: np.array([line.get(name) for line in lines], dtype=float) for name in names}
    if np.all(np.diff(columns["step"]) > 0):
        return columns
    # The file may come from another program: sort by step, and keep the last line of each step.
    _, last = np.unique(columns["step"][::-1], return_index=True)
    return {name: column[::-1][last] for name, column in columns.items()}
