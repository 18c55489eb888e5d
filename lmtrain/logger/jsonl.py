"""`metrics.jsonl`, the truth of a run: one strict JSON object a line, no step twice; null is a NaN or an infinity."""

import errno
import json
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from lmtrain.files.durable import flush_to_disk, write_atomically
from lmtrain.files.metrics import metric_lines
from lmtrain.files.numbers import nan_as_null

log = logging.getLogger(__name__)


class JsonlLogger:
    """Appends to the file; `rewind` removes the lines of steps that are about to be run again.

    Raises:
        OSError: the disk refuses. This one logger is not optional, so the run stops.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # A line in one write: a kill cuts the file between lines, or within the last at worst.
        line = _line({"step": step, **metrics}).encode()
        end = self._file.tell()
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "no space for a whole line", str(self.path))
        except OSError:
            self._file.truncate(end)  # no half line stays
            raise

    def rewind(self, step: int) -> None:
        """Remove the lines after a step, and with a warning what is no line of metrics, or is a step again."""
        self._file.close()
        write_atomically(self.path, self._kept(step))
        self._file = self.path.open("ab", buffering=0)

    def _kept(self, step: int) -> Iterator[str]:
        last, again = -math.inf, 0
        for text, line in metric_lines(self.path, log.warning):
            at = line["step"]
            assert at is not None
            if at > step:
                continue
            if at <= last:
                again += 1
                continue
            last = at
            is_strict = text.endswith("\n") and "NaN" not in text and "Infinity" not in text
            yield text if is_strict else _line(line)
        if again:
            log.warning("%s: lines that repeat a step, or go back to an earlier one: %d; left out", self.path, again)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        flush_to_disk(self._file.fileno(), self.path)

    def close(self, status: str) -> None:
        self._file.close()


def _line(metrics: Mapping[str, float | None]) -> str:
    return json.dumps(nan_as_null(dict(metrics)), allow_nan=False) + "\n"
