"""`metrics.jsonl` is read without its invalid lines, and from its end while a run is active."""

import json
import math
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lmtrain.files.metrics import MAX_LINE_BYTES, TAIL_BYTES, metric_lines, read_columns, read_metrics, read_newest

LINES = '{"step": 1, "train/loss": 2.0}\n{"step": 2, "train/loss": null, "lr": 0.1}\n'


def no_warning(line: str) -> None:
    pytest.fail(line)


def test_lines_and_columns_are_the_same_numbers(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES)
    first, second = read_metrics(path)
    assert first == {"step": 1, "train/loss": 2.0}
    assert (second["step"], second["lr"], math.isnan(second["train/loss"])) == (2, 0.1, True)
    columns = read_columns(path, no_warning)
    assert {name: column.tolist()[0] for name, column in columns.items() if name != "lr"} == first
    assert columns["lr"][1] == 0.1
    assert np.isnan([columns["lr"][0], columns["train/loss"][1]]).all()


def test_without_a_file_there_are_no_lines(tmp_path: Path) -> None:
    assert {name: len(column) for name, column in read_columns(tmp_path / "none", no_warning).items()} == {"step": 0}
    assert read_newest(tmp_path / "none") == {}


OTHER_LINES = [
    '{"step": 3, "tr', "[]", "3", '{"train/loss": 1.0}', '{"step": null}', '{"step": "3"}', '{"step": true}',
    '{"step": 3, "a": "?"}', '{"step": 3, "a": "4"}', '{"step": 3, "a": []}', '{"step": 3, "a": {}}', '{"a": 1}',
    f'{{"step": 3, "a": 1{"0" * 400}}}', f'{{"step": 1{"0" * 400}}}', '{"step": Infinity}', '{"step": NaN}',
    '{"step": 3.5}', "[" * 100_000, '{"step": 3, "\udcff": 1}', "",
]  # fmt: skip


@pytest.mark.parametrize("other", OTHER_LINES, ids=lambda line: line[:20])
def test_an_invalid_line_is_left_out(other: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{LINES}{other}\n{{"step": 4}}\n', encoding="utf-8", errors="surrogateescape")
    assert [line["step"] for line in read_metrics(path)] == [1, 2, 4]
    assert read_newest(path)["step"] == 4
    for read in (read_columns, lambda path, warn: list(metric_lines(path, warn))):
        warnings: list[str] = []
        read(path, warnings.append)
        assert warnings == [f"{path}: line 3 is not a line of metrics; left out"]
    assert read_columns(path, warnings.append)["step"].tolist() == [1, 2, 4]


def test_an_endless_line_is_not_kept_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{LINES}{{"step": 3, "{"x" * 10 * MAX_LINE_BYTES}": 1}}\n{{"step": 4}}\n')
    warnings: list[str] = []
    tracemalloc.start()
    try:
        assert [line["step"] for _, line in metric_lines(path, warnings.append)] == [1, 2, 4]
        assert tracemalloc.get_traced_memory()[1] < 5 * MAX_LINE_BYTES
    finally:
        tracemalloc.stop()
    assert warnings == [f"{path}: line 3 is not a line of metrics; left out"]


def test_many_invalid_lines_cause_one_warning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("?\n" + LINES + "?\n?\n")
    warnings: list[str] = []
    assert len(list(metric_lines(path, warnings.append))) == 2
    assert warnings == [f"{path}: line 1 and 2 more are not lines of metrics; left out"]


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_pipe_is_not_waited_for(make: Callable[[Path], None], tmp_path: Path) -> None:
    make(tmp_path / "metrics.jsonl")
    with pytest.raises(OSError, match="not a plain file"):
        read_metrics(tmp_path / "metrics.jsonl")
    assert read_newest(tmp_path / "metrics.jsonl") == {}


def test_half_a_line_at_the_end_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + '{"step": 3, "tr')
    assert len(read_metrics(path)) == len(read_columns(path, no_warning)["step"]) == 2
    assert read_newest(path) == {"step": 2, "train/loss": None, "lr": 0.1}


def test_the_newest_values_come_from_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "train/loss": 1 / step} for step in range(1, 2001)]
    lines[0]["old"] = lines[1990]["val/loss"] = 0.5
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert path.stat().st_size > 4 * TAIL_BYTES
    assert read_newest(path) == {"step": 2000, "train/loss": 1 / 2000, "val/loss": 0.5}
