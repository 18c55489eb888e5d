"""Reads `metrics.jsonl`: all of its lines, its columns, or the newest values of a run that goes on."""

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

# Measured by a clock, or of the process and not of the training: they differ between two runs of the same bits.
MEASURED = frozenset({"step_time_ms", "tokens_per_second", "seconds", "memory_gb", "mfu"})
MAX_BYTES = 500_000_000  # a million lines have half of that
MAX_COLUMNS = 1000
MAX_LINE_BYTES = 1_000_000
TAIL_BYTES = 16_000  # some fifty lines, of which one has a validation loss


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the lines of metrics, with NaN for null; what is no such line is left out."""
    return [_with_nan(values) for _, values in metric_lines(path)]


def metric_lines(path: Path, warn: Callable[[str], None] = lambda text: None) -> Iterator[tuple[str, Line]]:
    """Yield each line of metrics, as it is in the file and as an object, in the memory of one.

    What is no such line is left out, with one call of `warn` at the end; a half line at the end, of a kill, without.

    Raises:
        OSError: the file can't be read.
    """
    with open_plain_file(path) as file:
        yield from _ours(path, _lines(file), warn)


def read_columns(path: Path, warn: Callable[[str], None]) -> "dict[str, np.ndarray]":
    """Return each metric as a column, with NaN where a line lacks it or has a null; empty columns without a file.

    The file may be a stranger's. What is no line of metrics is left out, with one call of `warn`; the half line at the
    end that a run may be writing now, without.

    Raises:
        ValueError: there are too many bytes or metrics.
        OSError: the file can't be read.
    """
    import numpy as np  # for columns alone: a sweep reads lines, and starts without it

    try:
        content = read_limited(path, MAX_BYTES)
    except FileNotFoundError:
        content = b""
    lines = content[: content.rfind(b"\n") + 1].splitlines(keepends=True)  # what follows may be half a line
    try:
        found = json.loads(b"[" + b",".join(lines) + b"]")  # in one call: a third of the time
        has_text = any(mark in content for mark in (b': "', b':"'))  # which would be read as a number where it is one
        if has_text or not all(type(values) is dict and is_number(values.get("step")) for values in found):
            raise ValueError("not a line of metrics")
        columns = _columns(found)
        steps = columns["step"]
        if not (np.isfinite(steps).all() and (steps == np.floor(steps)).all()):
            raise ValueError("not a step")
        return columns
    except (ValueError, TypeError, OverflowError, RecursionError):
        return _columns([values for _, values in _ours(path, lines, warn)])


def read_newest(path: Path) -> Line:
    """Return the newest value of each metric in the last lines, of a run that may go on; empty without a file."""
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


def _ours(path: Path, lines: Iterable[bytes], warn: Callable[[str], None]) -> Iterator[tuple[str, Line]]:
    """Yield what is a line of metrics; warn once of what is not."""
    first, others = 0, 0
    for number, line in enumerate(lines, start=1):
        if found := _parsed(line):
            yield found
        elif line.endswith(b"\n"):  # else the half line of a kill
            others += bool(first)
            first = first or number
    if first:
        what = f"and {others} more are not lines" if others else "is not a line"
        warn(f"{path}: line {first} {what} of metrics; left out")


def _parsed(line: bytes) -> tuple[str, Line] | None:
    """Return a line as text and as an object; None if it is no object of numbers and nulls with a whole step."""
    try:
        text = line.decode()
        values = json.loads(text)
        if type(values) is not dict or not is_number(values["step"]) or values["step"] != int(values["step"]):
            return None
        for value in values.values():
            if value is not None:
                math.isfinite(value)  # raises for what is no number, or an integer beyond all floats
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None
    return text, values


def _lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of a file; an empty one in place of a line that is longer than any of metrics."""
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
    # No step twice, and in order, whoever wrote the file: the last line of a step counts.
    _, last = np.unique(columns["step"][::-1], return_index=True)
    return {name: column[::-1][last] for name, column in columns.items()}
