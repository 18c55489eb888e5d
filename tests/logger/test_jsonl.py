import json
import math
import resource
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.files.metrics import read_metrics
from lmtrain.logger.jsonl import JsonlLogger


def strict(line: str) -> dict[str, Any]:
    """Parse a line as strictly as a reader in another language would."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is not JSON")

    content: dict[str, Any] = json.loads(line, parse_constant=refuse)
    return content


def resumed(path: Path, step: int) -> JsonlLogger:
    logger = JsonlLogger(path)
    logger.rewind(step)
    return logger


def log_steps(path: Path, start: int, stop: int, after: int) -> None:
    logger = resumed(path, after)
    for step in range(start, stop):
        logger.log(step, {"train/loss": 1 / step})
    logger.close("completed")


def steps(path: Path) -> list[float]:
    return [line["step"] for line in read_metrics(path)]


def test_a_step_is_one_line_that_begins_with_the_step(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = JsonlLogger(path)
    logger.log(1, {"train/loss": 2.5, "lr": 1e-4})
    logger.log(2, {"val/loss": 2.25})
    logger.close("completed")
    assert path.read_text() == '{"step": 1, "train/loss": 2.5, "lr": 0.0001}\n{"step": 2, "val/loss": 2.25}\n'


def test_another_reader_sees_each_line_at_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = JsonlLogger(path)
    for step in (1, 2, 3):
        logger.log(step, {"train/loss": 1.0})
        assert steps(path) == list(range(1, step + 1))
    logger.close("completed")


def test_a_resume_removes_the_steps_that_are_run_again(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_steps(path, 1, 8, after=0)
    log_steps(path, 5, 10, after=4)
    assert steps(path) == list(range(1, 10))


def test_a_resume_before_the_first_logged_step_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_steps(path, 1, 4, after=0)
    resumed(path, 0).close("completed")
    assert path.read_bytes() == b""


@pytest.mark.parametrize("cut", [1, 2, 10, 35])
def test_a_last_line_that_a_kill_left_incomplete_is_removed_and_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    log_steps(path, 1, 7, after=0)
    content = path.read_bytes()
    assert content.endswith(b'{"step": 6, "train/loss": 0.16666666666666666}\n')
    path.write_bytes(content[: -cut - 1])  # the newline and `cut` more bytes
    assert steps(path) == [1, 2, 3, 4, 5]
    log_steps(path, 6, 9, after=6)
    assert [strict(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_a_missing_last_newline_loses_no_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    log_steps(path, 1, 3, after=0)
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    log_steps(path, 3, 4, after=2)
    assert [strict(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]


def test_nan_and_infinity_are_null_in_the_file_and_nan_when_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = JsonlLogger(path)
    logger.log(1, {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "loss": 2.0})
    logger.close("diverged")
    resumed(path, 1).close("completed")  # a resume rewrites the file
    assert strict(path.read_text()) == {"step": 1, "nan": None, "inf": None, "minus": None, "loss": 2.0}
    (line,) = read_metrics(path)
    assert [name for name, value in line.items() if math.isnan(value)] == ["nan", "inf", "minus"]


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_finite_numbers_are_stored_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    path = tmp_path_factory.mktemp("run") / "metrics.jsonl"
    logger = JsonlLogger(path)
    logger.log(1, {"value": value})
    logger.close("completed")
    resumed(path, 1).close("completed")
    assert struct.pack("d", read_metrics(path)[0]["value"]) == struct.pack("d", value)


def test_a_write_error_stops_the_run(tmp_path: Path) -> None:
    logger = JsonlLogger(tmp_path / "metrics.jsonl")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            logger.log(1, {"train/loss": 1.0})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    logger.close("failed")


def test_a_disk_that_fills_up_within_a_line_leaves_no_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = JsonlLogger(path)
    logger.log(1, {"train/loss": 1.0})
    whole = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + 5, hard))
    try:
        with pytest.raises(OSError, match="no space"):
            logger.log(2, {"train/loss": 1.0})
        assert path.read_bytes() == whole
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    logger.log(2, {"train/loss": 0.5})
    logger.close("completed")
    assert steps(path) == [1, 2]


def test_a_rewind_removes_later_lines_and_logging_continues(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    logger = JsonlLogger(path)
    for step in (1, 2, 3, 4):
        logger.log(step, {"train/loss": 1.0})
    logger.rewind(2)
    logger.log(3, {"train/loss": 2.0})
    logger.sync()
    logger.close("completed")
    assert [(line["step"], line["train/loss"]) for line in read_metrics(path)] == [(1, 1.0), (2, 1.0), (3, 2.0)]


def test_lines_that_are_not_metrics_do_not_prevent_a_resume(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    log_steps(path, 1, 7, after=0)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:3], '{"a":1}', '{"step":"5"}', lines[1], *lines[3:], '{"step":5,"x":{}}', ""]))
    resumed(path, 5).close("completed")
    assert path.read_text().splitlines() == lines[:5]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: line 4 and 2 more are not lines of metrics; left out",
        f"{path}: removed lines that repeat a step or go back to an earlier one: 1",
    ]


def test_a_resume_turns_nan_and_infinity_into_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "NaN": 1.0}\n{"step": 2, "x": NaN, "y": -Infinity}\n')
    resumed(path, 2).close("completed")
    assert [strict(line) for line in path.read_text().splitlines()] == [
        {"step": 1, "NaN": 1.0},
        {"step": 2, "x": None, "y": None},
    ]


def test_resuming_a_long_file_takes_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with path.open("w") as file:
        file.writelines(f'{{"step": {step}, "train/loss": 0.1234567890123456}}\n' for step in range(1, 20_001))
    tracemalloc.start()
    try:
        resumed(path, 19_000).close("completed")
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size > 900_000
    assert most < 200_000
