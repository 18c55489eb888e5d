"""`metrics.jsonl` is read up to the first damaged line, and from its end while a run goes on."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from lmtrain.files.metrics import TAIL_BYTES, read_columns, read_metrics, read_newest

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


def test_without_a_file_there_is_no_line(tmp_path: Path) -> None:
    assert {name: len(column) for name, column in read_columns(tmp_path / "none", no_warning).items()} == {"step": 0}
    assert read_newest(tmp_path / "none") == {}


@pytest.mark.parametrize(
    "damaged",
    ['{"step": 3, "tr', "[]", "3", '{"train/loss": 1.0}', '{"step": null}', '{"step": "x"}', '{"step": 3, "a": "?"}',
     '{"step": 3, "a": []}', f'{{"step": 3, "a": 1{"0" * 400}}}', "[" * 100_000, '{"step": 3, "\udcff": 1}'],
)  # fmt: skip
def test_the_lines_before_a_damaged_one_count(damaged: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(f'{LINES}{damaged}\n{{"step": 4}}\n', encoding="utf-8", errors="surrogateescape")
    warnings: list[str] = []
    assert [line["step"] for line in read_metrics(path)] == [1, 2]
    assert read_columns(path, warnings.append)["step"].tolist() == [1, 2]
    assert warnings == [f"{path}: line 3 is damaged; the 2 lines before it count"]


def test_half_a_line_at_the_end_may_just_be_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + '{"step": 3, "tr')
    assert len(read_metrics(path)) == len(read_columns(path, no_warning)["step"]) == 2
    assert read_newest(path) == {"step": 2, "train/loss": None, "lr": 0.1}


def test_the_newest_values_are_those_of_the_last_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": step, "train/loss": 1 / step} for step in range(1, 2001)]
    lines[0]["old"] = lines[1990]["val/loss"] = 0.5
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert path.stat().st_size > 4 * TAIL_BYTES
    assert read_newest(path) == {"step": 2000, "train/loss": 1 / 2000, "val/loss": 0.5}
