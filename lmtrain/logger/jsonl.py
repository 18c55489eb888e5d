"""Writes `metrics.jsonl`, the truth of a run: one strict JSON object per line, and one line per step.

JSON has no NaN and no infinity, so both are written as null.
"""

import errno
import json
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from lmtrain.files.durable import flush_to_disk, write_atomically
from lmtrain.files.metrics import metric_lines
from lmtrain.files.numbers import nan_as_null

log = logging.getLogger(__name__)


class JsonlLogger:
    """Appends lines to the file; `rewind` removes the lines of steps that are about to be run again.

    Raises:
        OSError: the file can't be written. Since this logger is not optional, the run stops.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # A line is one write, so that a kill damages at most the last line.
        line = _line({"step": step, **metrics}).encode()
        end = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space for a whole line", str(self.path))
        except OSError:
            self._file.truncate(end)  # removes an incomplete line
            raise

    def rewind(self, step: int) -> None:
        """Remove the lines after a step, and with a warning those that repeat a step or are not metrics."""
        self._file.close()
        write_atomically(self.path, self._kept(step))
        self._file = self.path.open("ab", buffering=0)

    def _kept(self, step: int) -> Iterator[str]:
        last, repeated = -math.inf, 0
        for text, line in metric_lines(self.path, log.warning):
            at = line["step"]
            assert at is not None
            if at > step:
                continue
            if at <= last:
                repeated += 1
                continue
            last = at
            is_strict = text.endswith("\n") and "NaN" not in text and "Infinity" not in text
            yield text if is_strict else _line(line)
        if repeated:
            log.warning("%s: removed lines that repeat a step or go back to an earlier one: %d", self.path, repeated)

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        """Do nothing: texts have a file of their own."""

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        flush_to_disk(self._file.fileno(), self.path)

    def close(self, status: str) -> None:
        self._file.close()


def _line(metrics: Mapping[str, float | None]) -> str:
    return json.dumps(nan_as_null(dict(metrics)), allow_nan=False) + "\n"
