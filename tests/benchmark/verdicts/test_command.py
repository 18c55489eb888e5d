"""`benchmark verdicts` simulates, judges and reports; it finds fault with a rule that is wrong."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lmtrain.benchmark.verdicts.case import Case, Row
from lmtrain.benchmark.verdicts.drawing import equal_design
from lmtrain.benchmark.verdicts.jobs import SCENARIOS, CaseResult, jobs, run_job, run_jobs
from lmtrain.benchmark.verdicts.report import worst_rows
from lmtrain.benchmark.verdicts.rules import Claims, separate_tests
from lmtrain.benchmark.verdicts.scenarios.null_tables import COVERAGE, FALSE_BETTER, NullTables
from lmtrain.commands.benchmark import main
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.errors import ConfigError


def uncorrected_tests(groups: Sequence[ReplicateGroup]) -> Claims:
    """Return the claims of Welch's test for each pair with the best, as if no other setting existed."""
    best, *others = sorted(groups, key=lambda group: group.mean)
    claims = [separate_tests([best, other]) for other in others]
    return Claims(
        best.label,
        [pair for one in claims for pair in one.better],
        {k: v for c in claims for k, v in c.intervals.items()},
    )


def test_uncorrected_tests_are_a_fault() -> None:
    table = NullTables(equal_design(10, 5), uncorrected_tests)
    case = Case("ten equal settings", table)
    rows = table(100, np.random.default_rng(0))
    assert [case.judge(row) for row in rows] == ["fault", "fault"]
    assert rows[0].what == FALSE_BETTER
    assert rows[0].value > 0.3


def test_corrected_separate_tests_keep_their_level_but_their_intervals_do_not_hold() -> None:
    table = NullTables(equal_design(10, 5), separate_tests)
    false_better, coverage = table(300, np.random.default_rng(0))
    assert Case("", table).judge(false_better) == "ok"
    assert Case("", table).judge(coverage) == "fault"


def test_a_known_fault_is_a_hole() -> None:
    row = Row("errors", 0.1, 0.01, limit=0.05)
    case = Case("a case", lambda tables, generator: [row])
    assert case.judge(row) == "fault"
    assert replace(case, holes={"errors": "said in the documentation"}).judge(row) == "hole"
    assert case.judge(replace(row, value=0.079)) == "ok"  # within three Monte Carlo errors
    assert case.judge(replace(row, at_most=False)) == "ok"
    assert case.judge(replace(row, limit=None)) == ""


def test_a_number_that_cannot_be_measured_is_a_fault() -> None:
    row = Row("errors", float("nan"), float("nan"), limit=0.05)
    assert Case("", lambda tables, generator: [row]).judge(row) == "fault"


def test_the_worst_number_of_each_promise_is_kept() -> None:
    def result(case: str, value: float, verdict: str) -> CaseResult:
        return CaseResult("null", case, 100, [Row("errors", value, 0.01, 0.05)], [verdict], 1.0, typical=False)

    found = worst_rows([result("a", 0.04, "ok"), result("b", 0.2, "fault"), result("c", 0.3, "hole")])
    assert [(judged[0].case, judged[3]) for judged in found] == [("b", 3)]


def test_numbers_depend_on_the_seed_alone() -> None:
    todo = jobs(["null"], 20, 1, quick=True)[:2]
    both = [[result.rows for result in run_jobs(todo, processes)] for processes in (1, 2)]
    assert both[0] == both[1]
    assert run_job(todo[1]).rows == both[0][1]
    assert run_job(replace(todo[1], tables=200, seed=2)).rows != run_job(replace(todo[1], tables=200)).rows


def test_names_of_cases_are_unique() -> None:
    for _, cases in SCENARIOS.values():
        names = [case.name for case in cases()]
        assert len(names) == len(set(names))
        assert any(case.typical for case in cases())


def test_the_command_writes_every_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "numbers.json"
    assert main(["verdicts", "null", "--quick", "--tables=40", "--markdown", f"--json={file}"]) == 0
    assert "| null |" in capsys.readouterr().out
    numbers = json.loads(file.read_text(encoding="utf-8"))
    assert {row["what"] for case in numbers["cases"] for row in case["rows"]} >= {FALSE_BETTER, COVERAGE}
    assert main(["verdicts", "null", "--quick", "--tables=40", f"--before={file}"]) == 0
    assert "worst before" in " ".join(capsys.readouterr().out.split())
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(ConfigError, match="not written by benchmark verdicts"):
        main(["verdicts", "null", f"--before={file}"])
    with pytest.raises(ConfigError, match="no such scenario"):
        main(["verdicts", "nul"])
