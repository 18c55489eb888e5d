"""The value of a run: the direction of a metric, the best over shared evaluations, and interpolation."""

from pathlib import Path

import numpy as np
import pytest
from support.synthetic_runs import write_run

from lmtrain.comparison.output.tables import default_columns
from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.run_values import (
    EqualPlace,
    best_value,
    default_goal,
    direction_is_known,
    shared_steps,
    sign,
    value_at,
    when_reached,
)
from lmtrain.comparison.runs import ComparedRun, load_runs

NOISE = 0.01 * np.random.default_rng(2).standard_normal((2, 6))


@pytest.mark.parametrize(
    ("metric", "direction"),
    [
        ("val/loss", 1),
        ("train_eval/loss", 1),
        ("val/bits_per_byte", 1),
        ("step_time_ms", 1),
        ("val/accuracy", -1),
        ("val_acc", -1),
        ("hellaswag/acc_norm", -1),
        ("tokens_per_second", -1),
        ("mfu", -1),
        ("pass@10", -1),
        ("eval/exact_match", -1),
        ("reward_loss", 1),  # the last word says what it is
        ("loss_score", -1),
        ("val/error", 1),
    ],
)
def test_the_name_of_a_metric_says_which_direction_is_better(metric: str, direction: int) -> None:
    assert sign(metric) == direction
    assert direction_is_known(metric)
    assert sign(metric, higher=True) == -1
    assert sign(metric, higher=False) == 1


def test_an_unknown_metric_is_taken_as_a_loss_and_a_note_says_it(tmp_path: Path) -> None:
    assert not direction_is_known("val/accretion")
    for setting in (0, 1):
        for seed in range(3):
            quality = {"val/quality": 0.5 + setting / 10 + float(NOISE[setting, seed])}
            changes = {"seed": seed, "optimizer.lr": (1e-3, 2e-3)[setting]}
            write_run(tmp_path / f"{setting}{seed}", changes, metrics=quality)
    runs = load_runs([tmp_path])
    assumed = compare(runs, metric="val/quality")
    (note,) = [note for note in assumed.notes if note.kind == "direction"]
    assert note.text == "lower val/quality is taken as better; --higher compares the other way"
    assert assumed.conclusions.groups[0].label == "lr=0.001"
    given = compare(runs, metric="val/quality", higher=True)
    assert not [note for note in given.notes if note.kind == "direction"]
    assert given.conclusions.groups[0].label == "lr=0.002"
    assert given.better == -1
    assert given.goal == default_goal(runs, "val/quality", -1)
    assert when_reached(runs[0], "val/quality", 0.55, -1) is None
    assert when_reached(runs[5], "val/quality", 0.55, -1) is not None


def test_a_higher_accuracy_is_better(tmp_path: Path) -> None:
    for setting in (0, 1):
        for seed in range(4):
            accuracy = {"val/accuracy": 0.7 + setting / 10 + float(NOISE[setting, seed])}
            changes = {"seed": seed, "optimizer.lr": (1e-3, 2e-3)[setting]}
            write_run(tmp_path / f"{setting}{seed}", changes, metrics=accuracy)
    comparison = compare(load_runs([tmp_path]), metric="val/accuracy")
    assert comparison.conclusions.groups[0].label == "lr=0.002"
    assert comparison.conclusions.comparisons[0].p < 0.001


def flat_runs(folder: Path, often: int, seldom: int) -> list[ComparedRun]:
    """Return runs of two settings with the same noisy losses, evaluated at unequal intervals."""
    generator = np.random.default_rng(3)
    for setting in (0, 1):
        for seed in range(6):
            changes = {"seed": seed, "optimizer.lr": (1e-3, 2e-3)[setting]}
            write_run(folder / f"{setting}{seed}", changes, steps=600, log_interval=10,
                      eval_interval=(often, seldom)[setting])  # fmt: skip
    runs = load_runs([folder])
    for run in runs:
        evaluated = np.isfinite(run.metrics["val/loss"])
        run.metrics["val/loss"][evaluated] = 3 + 0.03 * generator.standard_normal(evaluated.sum())
    return runs


def test_the_best_value_is_taken_over_the_steps_that_all_runs_share(tmp_path: Path) -> None:
    """With all evaluations, runs that are evaluated ten times as often were called better."""
    runs = flat_runs(tmp_path, 10, 100)
    comparison = compare(runs, value="best")
    assert comparison.value == "best val/loss of the 6 evaluations that all runs share, up to step 600"
    assert shared_steps(runs, "val/loss").tolist() == [100, 200, 300, 400, 500, 600]
    assert comparison.conclusions.comparisons[0].p > 0.05
    for run in runs:
        steps, losses = run.series("val/loss")
        best = comparison.columns["best_shared"].value(run)
        assert best == losses[steps % 100 == 0].min()
        assert comparison.columns["best"].value(run) == losses.min()
    shown, _ = default_columns(comparison.columns, runs, comparison.keys)
    assert {"best", "best_shared"} <= {column.key for column in shown}


def test_equal_evaluations_need_no_second_column(tmp_path: Path) -> None:
    runs = flat_runs(tmp_path, 100, 100)
    comparison = compare(runs, value="best")
    assert comparison.value == "best val/loss"
    assert "best_shared" not in {column.key for column in default_columns(comparison.columns, runs, comparison.keys)[0]}


def test_a_run_without_one_of_the_shared_steps_has_no_best_value(tmp_path: Path) -> None:
    write_run(tmp_path / "a", steps=200)
    (run,) = load_runs([tmp_path])
    assert best_value(run, "val/loss", 1, np.array([50, 100])) == (run.series("val/loss")[1][1], 100)
    assert np.isnan(best_value(run, "val/loss", 1, np.array([50, 60]))[0])
    assert np.isnan(best_value(run, "val/loss", 1, np.array([]))[0])


def test_seldom_evaluated_runs_are_at_no_disadvantage_between_evaluations(tmp_path: Path) -> None:
    write_run(tmp_path / "often", steps=600, eval_interval=10)
    write_run(tmp_path / "seldom", steps=600, eval_interval=100)
    often, seldom = load_runs([tmp_path])
    place = EqualPlace("step", 150.0, False)
    assert value_at(often, "val/loss", place) == pytest.approx(3 * (150 / 600) ** -0.1)
    assert value_at(seldom, "val/loss", place) == pytest.approx(3 * (150 / 600) ** -0.1, abs=0.003)
    from_start = ComparedRun(**{**vars(seldom), "metrics": {**seldom.metrics, "step": seldom.metrics["step"] - 100}})
    assert value_at(from_start, "val/loss", EqualPlace("step", 50.0, False)) == pytest.approx(
        np.mean(from_start.series("val/loss")[1][:2])
    )
    assert np.interp(150, *seldom.series("val/loss")) > 3 * (150 / 600) ** -0.1 + 0.02  # a straight line
