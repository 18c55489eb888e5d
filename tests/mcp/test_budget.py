"""Tests the ledger of a folder's compute budget."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lmtrain.errors import ConfigError
from lmtrain.mcp.budget import Budget


def test_the_seconds_of_all_servers_count(tmp_path: Path) -> None:
    first = Budget(tmp_path / "mcp", 100)
    first.end_job(first.new_job(["plan"]), 30, 0)
    second = Budget(tmp_path / "mcp", 100)
    assert second.new_job(["compare"]) == "job-2"
    second.end_job("job-2", 50, 2)
    assert (first.spent(), first.left(5)) == (80, 15)
    second.check()
    second.end_job(second.new_job(["plan"]), 20, 0)
    with pytest.raises(ConfigError, match=r"the budget of 1m40s is spent \(1m40s, see .*ledger.jsonl\)"):
        second.check()


def test_a_job_of_a_killed_server_counts_until_its_log_was_last_written(tmp_path: Path) -> None:
    budget = Budget(tmp_path, 100)
    job = budget.new_job(["experiments=tiny"])
    assert budget.spent() == 0  # this process, its server, is alive
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    ledger = (tmp_path / "ledger.jsonl").read_text("utf-8")
    (tmp_path / "ledger.jsonl").write_text(ledger.replace(str(os.getpid()), str(gone.pid)), "utf-8")
    log = tmp_path / f"{job}.log"
    log.write_text("step 1", "utf-8")
    os.utime(log, (time.time() + 40, time.time() + 40))
    assert budget.spent() == pytest.approx(40, abs=5)


def test_a_cut_line_is_ignored(tmp_path: Path) -> None:
    budget = Budget(tmp_path, 100)
    budget.end_job(budget.new_job(["plan"]), 10, 0)
    with (tmp_path / "ledger.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"event": "ended", "job": "jo')
    assert budget.spent() == 10
