"""Every scenario runs, and finds the faults of rules that are known to be wrong."""

from pathlib import Path

import numpy as np
import pytest

from lmtrain.benchmark.verdicts.drawing import equal_design
from lmtrain.benchmark.verdicts.jobs import SCENARIOS, jobs, run_job
from lmtrain.benchmark.verdicts.rules import ALPHA
from lmtrain.benchmark.verdicts.scenarios.forks import Forks
from lmtrain.benchmark.verdicts.scenarios.looking_again import LONGEST, Seeds
from lmtrain.benchmark.verdicts.scenarios.power import Power
from lmtrain.comparison.runs import load_runs
from lmtrain.comparison.statistics.decision import decide_pair
from lmtrain.comparison.statistics.sequential import running_log_e_values


@pytest.mark.slow
@pytest.mark.parametrize("scenario", list(SCENARIOS))
def test_a_scenario_runs(scenario: str) -> None:
    for job in jobs([scenario], 20, 1, quick=True):
        result = run_job(job)
        assert result.rows
        assert all(np.isfinite(row.value) for row in result.rows), result.case


def test_power_grows_with_the_difference() -> None:
    found = {}
    for difference in (0.5, 6.0):
        design = equal_design(2, 5, means=(0.0, difference))
        found[difference] = Power(design, None)(50, np.random.default_rng(0))[0].value
    assert found[0.5] < 0.4
    assert found[6.0] > 0.9


def test_looks_at_once_decide_as_one_after_another() -> None:
    generator = np.random.default_rng(0)
    values = Seeds(difference=1).draw(LONGEST, generator)
    differences = values[1] - values[0]
    evidence = running_log_e_values(differences)
    for seeds in (2, 5, 10, 20, 40):
        kept = decide_pair(differences[:seeds], alpha=ALPHA).verdict == "keep"
        assert kept == (evidence[seeds - 1] >= -np.log(ALPHA))


def test_forks_are_written_as_lmtrain_writes_them(tmp_path: Path) -> None:
    folders = Forks(2).write(tmp_path, np.random.default_rng(0))
    runs = load_runs([tmp_path])
    assert len(folders) == 10
    assert len(runs) == 14
    assert sum(bool(run.parent) for run in runs) == 10
    assert all(run.parent.startswith("from ") for run in runs if run.parent)


def test_shared_parents_give_both_settings_their_losses(tmp_path: Path) -> None:
    folders = Forks(5, shared=True, inherited=1.0).write(tmp_path, np.random.default_rng(0))
    finals = [run.series("val/loss")[1][-1] for run in load_runs(folders)]
    assert len(finals) == 10
    np.testing.assert_allclose(finals[:5], finals[5:])
    assert len(set(finals)) == 5
