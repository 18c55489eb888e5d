"""Tests the record of what a sweep planned: one line for each start that adds runs, also after a crash."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from lmtrain.comparison.looking.design import DESIGN_FILE, read_design, record_start, sweep_of


def planned(sweep: Path, seeds: range) -> list[tuple[Path, list[str]]]:
    return [(sweep / f"seed={seed}", ["optimizer.lr=0.1", f"seed={seed}"]) for seed in seeds]


def test_a_start_that_adds_no_run_adds_no_line(tmp_path: Path) -> None:
    first = record_start(tmp_path, planned(tmp_path, range(3)))
    assert first is not None
    assert record_start(tmp_path, planned(tmp_path, range(3))) is None
    assert record_start(tmp_path, planned(tmp_path, range(2))) is None
    assert read_design(tmp_path) == [first]
    assert [run.setting for run in first.runs] == [("optimizer.lr=0.1",)] * 3


def test_a_later_line_has_only_what_was_added_and_how_many_runs_had_results(tmp_path: Path) -> None:
    record_start(tmp_path, planned(tmp_path, range(2)))
    (tmp_path / "seed=0").mkdir()
    (tmp_path / "seed=0" / "metrics.jsonl").touch()  # started, but nothing was measured
    assert [start.seen for start in read_design(tmp_path)] == [0]
    (tmp_path / "seed=1").mkdir()
    (tmp_path / "seed=1" / "metrics.jsonl").write_text('{"step": 1}\n')
    second = record_start(tmp_path, planned(tmp_path, range(4)))
    assert second is not None
    assert [run.directory for run in second.runs] == ["seed=2", "seed=3"]
    assert second.seen == 1
    assert len((tmp_path / DESIGN_FILE).read_text().splitlines()) == 2


def test_half_a_line_of_a_crashed_process_does_not_count(tmp_path: Path) -> None:
    record_start(tmp_path, planned(tmp_path, range(2)))
    file = tmp_path / DESIGN_FILE
    content = file.read_bytes()
    for length in (1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:length])
        again = record_start(tmp_path, planned(tmp_path, range(2)))
        # A line without its end is whole if all of its text is there.
        assert (again is None) == (length == len(content) - 1)
        assert [len(start.runs) for start in read_design(tmp_path)] == [2]


def test_a_damaged_or_hostile_file_is_no_design(tmp_path: Path) -> None:
    lines = ["[]", "7", '{"time": 1}', '{"time": "", "command": [], "seen": "x", "runs": []}', "[" * 100_000, "\x00"]
    (tmp_path / DESIGN_FILE).write_text("\n".join(lines))
    assert read_design(tmp_path) == []
    (tmp_path / DESIGN_FILE).unlink()
    os.mkfifo(tmp_path / DESIGN_FILE)
    assert read_design(tmp_path) == []
    assert sweep_of(tmp_path / "run") is None


def record(sweep: Path, seeds: range) -> None:
    record_start(sweep, planned(sweep, seeds))


def test_processes_that_start_one_sweep_at_once_record_every_run_once(tmp_path: Path) -> None:
    with ProcessPoolExecutor(2) as pool:
        for done in [pool.submit(record, tmp_path, range(first, first + 5)) for first in (0, 3, 0, 3)]:
            done.result()
    recorded = [run.directory for start in read_design(tmp_path) for run in start.runs]
    assert sorted(recorded) == [f"seed={seed}" for seed in range(8)]
    for line in (tmp_path / DESIGN_FILE).read_text().splitlines():
        json.loads(line)
