import csv
import math
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.logger.base import RunInfo
from lmtrain.logger.csv import CsvLogger


def logger(folder: Path) -> CsvLogger:
    return CsvLogger(RunInfo(folder, id="id", name="a", group="b", config={}))


def rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows as any CSV reader sees them."""
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


def test_metrics_are_columns_and_steps_are_rows(tmp_path: Path) -> None:
    mine = logger(tmp_path)
    mine.log(1, {"train/loss": 2.5, "tokens": 128})
    mine.log(2, {"train/loss": math.nan, "tokens": 256})
    mine.close("completed")
    assert (tmp_path / "metrics.csv").read_text() == "step,train/loss,tokens\n1,2.5,128\n2,nan,256\n"


def test_rows_are_written_at_once_and_a_new_metric_becomes_a_column(tmp_path: Path) -> None:
    mine = logger(tmp_path)
    logged: list[Mapping[str, float]] = [{"a": 1.0}, {"a": 2.0, 'b, or "c"': 3.0}, {"d": 4.0}, {"a": 5.0}]
    for step, metrics in enumerate(logged, 1):
        mine.log(step, metrics)
        assert [{name: float(value) for name, value in row.items() if value} for row in rows(tmp_path)] == [
            {"step": number, **metrics} for number, metrics in enumerate(logged[:step], 1)
        ]
    assert list(rows(tmp_path)[0]) == ["step", "a", 'b, or "c"', "d"]
    mine.close("completed")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


@pytest.mark.parametrize("cut", [0, 1, 3, 9])
def test_a_killed_run_that_is_resumed_has_each_step_once(tmp_path: Path, cut: int) -> None:
    killed = logger(tmp_path)
    for step in range(1, 8):
        killed.log(step, {"train/loss": 1 / step})
    path = tmp_path / "metrics.csv"
    path.write_bytes(path.read_bytes()[: -cut or None])
    resumed = logger(tmp_path)
    resumed.rewind(4)
    for step in range(5, 10):
        resumed.log(step, {"train/loss": 2 / step, "val/loss": 1.0})
    resumed.close("completed")
    assert [int(row["step"]) for row in rows(tmp_path)] == list(range(1, 10))
    assert [float(row["train/loss"]) * int(row["step"]) for row in rows(tmp_path)] == pytest.approx(
        [1.0] * 4 + [2.0] * 5
    )


@given(value=st.floats(allow_nan=False))
def test_numbers_are_stored_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    folder = tmp_path_factory.mktemp("run")
    mine = logger(folder)
    mine.log(1, {"value": value})
    mine.close("completed")
    assert float(rows(folder)[0]["value"]).hex() == value.hex()
