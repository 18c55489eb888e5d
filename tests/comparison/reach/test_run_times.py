"""Tests when runs and settings reach a value, with censoring at the evaluations and at the ends of runs."""

import json
import math
from pathlib import Path

import pytest
from rich.console import Console
from support.synthetic_runs import write_run

from lmtrain.comparison.output.tables import setting_reach_table
from lmtrain.comparison.output.text_files import as_json
from lmtrain.comparison.reach.run_times import reach_intervals
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.runs import load_runs


@pytest.mark.parametrize(
    ("goal", "status", "expected"),
    [
        (5.0, "completed", (0, 50)),  # already the first evaluation
        (3.1, "completed", (100, 150)),
        (3.0, "completed", (150, 200)),  # exactly at the last one
        (2.9, "completed", (200, math.inf)),
        (2.9, "pruned", (200, math.inf)),
        (2.9, "diverged", (math.inf, math.inf)),
        (3.1, "diverged", (100, 150)),
    ],
)
def test_a_run_reaches_the_goal_between_two_evaluations(
    tmp_path: Path, goal: float, status: str, expected: tuple[float, float]
) -> None:
    """The loss is 3 × (step / 200) ^ −0.1 and evaluated every 50 steps."""
    (run,) = load_runs([write_run(tmp_path / "run", final_loss=3.0, status=status)])
    found = reach_intervals(run, "val/loss", goal, 1)
    assert found is not None
    assert found["step"] == expected
    assert found["tokens"] == (1024 * expected[0], 1024 * expected[1])


def test_higher_can_be_better_and_a_run_without_evaluations_says_nothing(tmp_path: Path) -> None:
    (run,) = load_runs([write_run(tmp_path / "run", steps=20)])
    assert reach_intervals(run, "val/loss", 3.0, 1) is None
    assert reach_intervals(run, "tokens_per_second", 1.0, -1)["step"] == (0, 1)  # type: ignore[index]


def write_two_settings(folder: Path, seeds: int, late_loss: float = 3.3, **late: str) -> None:
    for seed in range(seeds):
        write_run(folder / f"soon{seed}", {"optimizer.lr": 1e-3, "seed": seed}, final_loss=2.9 + seed / 1e4)
        write_run(
            folder / f"late{seed}", {"optimizer.lr": 2e-3, "seed": seed}, final_loss=late_loss + seed / 1e4, **late
        )


def test_a_setting_that_is_sooner_is_named(tmp_path: Path) -> None:
    write_two_settings(tmp_path, 6)
    comparison = compare(load_runs([tmp_path]), goal=3.35)
    assert comparison.reach is not None
    soon, late = comparison.reach.settings
    assert (soon.label, soon.reached, soon.medians["step"]) == ("lr=0.001", 6, (0, 50))
    assert (late.label, late.reached, late.medians["step"]) == ("lr=0.002", 6, (150, 200))
    assert late.p == pytest.approx(2 / 2**6)
    assert comparison.reach.sentences == ["lr=0.001 is sooner than lr=0.002 (p = 0.031, 6 seeds each)"]
    written = json.loads(as_json(comparison))["reach"]
    assert written["settings"][1]["intervals"]["step"] == [150, 200]
    assert written["settings"][1]["test"].startswith("permutation test")
    console = Console(width=120, record=True)
    console.print(setting_reach_table(comparison.reach))
    assert "150–200" in console.export_text()


def test_settings_that_never_reach_it_come_last(tmp_path: Path) -> None:
    write_two_settings(tmp_path, 6, status="diverged")
    reach = compare(load_runs([tmp_path]), goal=3.2).reach
    assert reach is not None
    assert [setting.reached for setting in reach.settings] == [6, 0]
    assert reach.settings[1].medians["step"][1] == math.inf
    assert reach.settings[1].p == pytest.approx(2 / 2**6)


def test_three_seeds_are_too_few_and_one_seed_each_says_nothing(tmp_path: Path) -> None:
    write_two_settings(tmp_path / "three", 3)
    reach = compare(load_runs([tmp_path / "three"]), goal=3.35).reach
    assert reach is not None
    assert reach.sentences == [
        "3 seeds each cannot show which setting is sooner: the smallest possible p of 1 comparison is 0.1"
    ]
    write_two_settings(tmp_path / "one", 1)
    assert compare(load_runs([tmp_path / "one"]), goal=3.35).reach is None


def test_settings_that_measure_different_things_are_not_tested(tmp_path: Path) -> None:
    for seed in range(6):
        for size, loss in ((64, 3.3), (128, 2.9)):
            write_run(tmp_path / f"{size}-{seed}", {"data.block_size": size, "seed": seed}, final_loss=loss)
    reach = compare(load_runs([tmp_path]), goal=3.35).reach
    assert reach is not None
    assert {setting.label for setting in reach.settings} == {"data.block_size=64", "data.block_size=128"}
    assert [setting.p for setting in reach.settings] == [None, None]
    assert reach.sentences == []
