"""`metrics.jsonl`, the truth of a run: one strict JSON object a line, no step twice; null is a NaN or an infinity."""

import errno
import json
from collections.abc import Mapping
from pathlib import Path

from lmtrain.files.durable import flush_to_disk, write_atomically
from lmtrain.files.metrics import read_metrics
from lmtrain.files.numbers import nan_as_null


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
        """Remove the lines after a step."""
        self._file.close()
        kept = [line for line in read_metrics(self.path) if line["step"] <= step]
        write_atomically(self.path, "".join(map(_line, kept)))
        self._file = self.path.open("ab", buffering=0)

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        flush_to_disk(self._file.fileno(), self.path)

    def close(self, status: str) -> None:
        self._file.close()


def _line(metrics: Mapping[str, float]) -> str:
    return json.dumps(nan_as_null(dict(metrics)), allow_nan=False) + "\n"
