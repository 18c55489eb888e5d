"""However a check ends, the report has a row for it, and the checks after it run."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lmtrain.verify.device.finding import FAILED, NOT_RUN, PASSED, Check
from lmtrain.verify.device.processes import Reported, run_checks

TESTS = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _tests_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


def named(name: str, process: str = "one", limit_s: float = 60) -> Check:
    return Check(name, f"support.device_checks:{name}", "it means something", process, limit_s)


def run(checks: Sequence[Check], tmp_path: Path, seconds: float = 120, **settings: Any) -> list[Reported]:
    return list(run_checks(checks, ["system.device=cpu"], tmp_path, time.monotonic() + seconds, **settings))


def rows(reports: Sequence[Reported]) -> list[tuple[str, str, str]]:
    return [(each.check.name, each.finding.status, each.finding.result) for each in reports]


@pytest.mark.slow
def test_every_ending_is_reported_and_the_others_run(tmp_path: Path) -> None:
    names = ("raises", "passes", "is_killed", "fails")
    reports = run([named(name) for name in names], tmp_path)
    assert rows(reports) == [
        ("raises", PASSED, "before"),
        ("raises", FAILED, "RuntimeError: CUDA error: device-side assert triggered"),
        ("passes", PASSED, "first"),
        ("passes", PASSED, "second"),
        ("is_killed", FAILED, "its process ended (SIGKILL): last words"),
        ("fails", FAILED, "the number is 2, not 1"),
    ]
    assert "raises" in "".join(reports[1].finding.values["traceback"])
    assert reports[2].finding.values == {"number": 1}


@pytest.mark.slow
def test_a_check_that_hangs_is_stopped(tmp_path: Path) -> None:
    reports = run([named("hangs", limit_s=0.25), named("passes", "two")], tmp_path, patience=2.0)
    assert rows(reports)[:2] == [("hangs", PASSED, "before"), ("hangs", FAILED, "stopped after 0 s")]
    assert rows(reports)[2:] == [("passes", PASSED, "first"), ("passes", PASSED, "second")]


@pytest.mark.slow
def test_at_the_deadline_the_rest_is_not_run(tmp_path: Path) -> None:
    started = time.monotonic()
    reports = run([named("hangs"), named("passes", "two")], tmp_path, seconds=15)
    assert time.monotonic() - started < 40
    assert [each.finding.status for each in reports][-2:] == [NOT_RUN, NOT_RUN]
    assert "--budget" in reports[-1].finding.result


def test_without_time_nothing_starts(tmp_path: Path) -> None:
    assert rows(run([named("passes")], tmp_path, seconds=1)) == [("passes", NOT_RUN, "no time was left; see --budget")]
