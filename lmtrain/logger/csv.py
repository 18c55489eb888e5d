"""Writes `metrics.csv`, with one row per logged step and one column per metric, for spreadsheets."""

import csv
import io
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from lmtrain.files.durable import write_atomically
from lmtrain.logger.base import RunInfo

STEP = "step"


class CsvLogger:
    """Appends a row per logged step to `metrics.csv` in the run directory.

    A metric that is new becomes a new column, for which the file is rewritten. An empty cell is a metric that the step
    does not have; NaN and infinity are `nan` and `inf`. After a kill, all complete rows are there.
    """

    def __init__(self, run: RunInfo) -> None:
        self.path = run.directory / "metrics.csv"
        self.rewind(sys.maxsize)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        row = {STEP: str(step)} | {name: str(value) for name, value in metrics.items()}
        if new := [name for name in row if name not in self._columns]:
            self._file.close()
            self._write([*self._columns, *new], [*read_rows(self.path), row])
        else:
            self._file.write(self._text([row]).encode())  # in one write, so that a kill damages only the last row

    def rewind(self, step: int) -> None:
        """Remove the rows after a step."""
        rows = read_rows(self.path) if self.path.exists() else []
        self._write(list(rows[0]) if rows else [STEP], [row for row in rows if int(row[STEP]) <= step])

    def close(self, status: str) -> None:
        self._file.close()

    def _write(self, columns: list[str], rows: Iterable[Mapping[str, str]]) -> None:
        self._columns = columns
        write_atomically(self.path, self._text([dict(zip(columns, columns, strict=True)), *rows]))
        self._file = self.path.open("ab", buffering=0)

    def _text(self, rows: Iterable[Mapping[str, str]]) -> str:
        text = io.StringIO()
        csv.DictWriter(text, self._columns, restval="", lineterminator="\n").writerows(rows)
        return text.getvalue()


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a `metrics.csv`, without a last row that a kill left incomplete."""
    whole, _, _ = path.read_text(encoding="utf-8", errors="replace").rpartition("\n")
    return [row for row in csv.DictReader(whole.splitlines()) if str(row.get(STEP)).isdecimal()]
