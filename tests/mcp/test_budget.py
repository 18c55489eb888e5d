"""Tests the ledger of a folder's compute budget."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmtrain.errors import ConfigError
from lmtrain.mcp.budget import ComputeBudget

START_AND_DIE = """
import os, sys
from pathlib import Path
from lmtrain.mcp.budget import ComputeBudget
ComputeBudget(Path(sys.argv[1]), 100).new_job(["experiments=tiny"])
os._exit(1)
"""


def test_the_seconds_of_all_servers_count(tmp_path: Path) -> None:
    first = ComputeBudget(tmp_path / "mcp", 100)
    first.end_job(first.new_job(["plan"]), 30, 0)
    second = ComputeBudget(tmp_path / "mcp", 100)
    assert second.new_job(["compare"]) == "job-2"
    second.end_job("job-2", 50, 2)
    assert (first.spent(), first.left()) == (80, 20)
    second.check()
    second.end_job(second.new_job(["plan"]), 20, 0)
    with pytest.raises(ConfigError, match=r"the budget of 1m40s is spent \(1m40s, see .*ledger.jsonl\)"):
        second.check()


def test_a_job_counts_in_every_server_while_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = ComputeBudget(tmp_path, 100), ComputeBudget(tmp_path, 100)
    job = first.new_job(["experiments=tiny"])
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 99)
    assert first.spent() == second.spent() == pytest.approx(99, abs=1)
    monkeypatch.setattr(time, "time", lambda: now + 120)
    with pytest.raises(ConfigError, match="is spent"):
        second.check()
    first.end_job(job, 7, 0)
    assert second.spent() == 7


def test_a_job_of_a_killed_server_counts_until_its_log_was_last_written(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", START_AND_DIE, str(tmp_path)], check=False)
    budget = ComputeBudget(tmp_path, 100)
    assert budget.spent() == 0  # it had written nothing
    log = budget.log_file("job-1")
    log.write_text("step 1", "utf-8")
    os.utime(log, (time.time() + 40, time.time() + 40))
    assert budget.spent() == pytest.approx(40, abs=5)


def test_a_cut_line_is_ignored_and_takes_no_other_line_with_it(tmp_path: Path) -> None:
    budget = ComputeBudget(tmp_path, 100)
    budget.end_job(budget.new_job(["plan"]), 10, 0)
    with budget.path.open("a", encoding="utf-8") as file:
        file.write('{"event": "ended", "job": "jo')
    assert budget.spent() == 10
    budget.end_job(budget.new_job(["plan"]), 5, 0)
    assert budget.spent() == 15


@pytest.mark.parametrize("line", ["7", '{"event": "started"}', '{"event": "ended", "job": "job-1"}', "[" * 100_000])
def test_a_damaged_line_is_ignored(line: str, tmp_path: Path) -> None:
    budget = ComputeBudget(tmp_path, 100)
    budget.end_job(budget.new_job(["plan"]), 10, 0)
    budget.path.write_text(f"{line}\n{budget.path.read_text('utf-8')}{line}\n", "utf-8")
    assert budget.spent() == 10


def test_a_name_that_is_in_use_is_not_given_again(tmp_path: Path) -> None:
    (tmp_path / "job-1").mkdir()
    (tmp_path / "job-2.log").touch()
    assert ComputeBudget(tmp_path, 100).new_job(["plan"]) == "job-3"
