"""A run counts if it was evaluated where the runs are compared, unless it diverged; what is missing is said."""

from pathlib import Path

import numpy as np
import pytest
from support.synthetic_runs import write_run

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.notes import Note
from lmtrain.comparison.run_comparison import RunComparison, compare
from lmtrain.comparison.runs import load_runs

NOISE = 0.01 * np.random.default_rng(1).standard_normal((2, 6))


def write_settings(
    folder: Path, steps: tuple[list[int], list[int]], status: tuple[list[str | None], list[str | None]]
) -> Path:
    """Write runs of two learning rates that were to do 200 steps and ended after these steps with this status."""
    for setting in (0, 1):
        for seed, (end, ended) in enumerate(zip(steps[setting], status[setting], strict=True)):
            changes = {"seed": seed, "optimizer.lr": (1e-3, 2e-3)[setting], "trainer.max_steps": 200}
            loss = (3.0 + float(NOISE[setting, seed])) * (end / 200) ** -0.1  # the same curve, whatever its end
            write_run(folder / f"{'ab'[setting]}{seed}", changes, steps=end, status=ended, final_loss=loss)
    return folder


def note(comparison: RunComparison, kind: str) -> Note:
    (found,) = [note for note in comparison.notes if note.kind == kind]
    return found


def sizes(comparison: RunComparison) -> dict[str, int]:
    return {group.label: len(group.values) for group in comparison.conclusions.groups}


def test_unfinished_runs_are_compared_at_the_last_step_that_they_share(tmp_path: Path) -> None:
    runs = load_runs([write_settings(tmp_path, ([100, 150, 150], [200, 100, 150]), ([None] * 3, [None] * 3))])
    comparison = compare(runs)
    assert comparison.value == "val/loss at step 100"
    assert sizes(comparison) == {"lr=0.001": 3, "lr=0.002": 3}
    assert comparison.conclusions.sentences[0].startswith("preliminary: ")
    assert comparison.conclusions.comparisons[0].sentence.startswith("preliminary: ")
    assert note(comparison, "preliminary").text == (
        "none of the 6 runs has completed (6 unfinished): this is a look in between at step 100, and its result may "
        "change"
    )


def test_a_run_that_has_just_started_does_not_decide_for_all(tmp_path: Path) -> None:
    steps = ([50, 150, 150, 150], [150] * 4)
    comparison = compare(load_runs([write_settings(tmp_path, steps, ([None] * 4, [None] * 4))]))
    assert comparison.value == "val/loss at step 150"
    assert sizes(comparison) == {"lr=0.001": 3, "lr=0.002": 4}
    assert "1 unfinished run has no value here; --at-step 50 compares all 8" in note(comparison, "without value").text


def test_a_setting_that_still_runs_can_be_compared_in_between(tmp_path: Path) -> None:
    runs = load_runs([write_settings(tmp_path, ([200] * 3, [100] * 3), (["completed"] * 3, ["interrupted"] * 3))])
    comparison = compare(runs)
    assert comparison.value == "val/loss at step 200"
    assert (
        "3 interrupted runs have no value here; --at-step 100 compares all 6" in note(comparison, "without value").text
    )
    between = compare(runs, at_step=100)
    assert sizes(between) == {"lr=0.001": 3, "lr=0.002": 3}
    assert between.conclusions.sentences[0].startswith("preliminary: ")
    assert "3 of 6 runs have not completed (3 interrupted)" in note(between, "preliminary").text


@pytest.mark.parametrize("status", ["pruned", "interrupted", "failed", None])
def test_a_run_that_ended_after_the_compared_step_counts(tmp_path: Path, status: str | None) -> None:
    runs = load_runs([write_settings(tmp_path, ([150, 150, 200, 200], [200] * 4),
                                     ([status, status, "completed", "completed"], ["completed"] * 4))])  # fmt: skip
    at_the_end, before = compare(runs), compare(runs, at_step=100)
    assert sizes(at_the_end) == {"lr=0.001": 2, "lr=0.002": 4}
    assert "--at-step 150 compares all 8" in note(at_the_end, "without value").text
    assert sizes(before) == {"lr=0.001": 4, "lr=0.002": 4}
    ended = status in ("pruned", "failed")
    assert note(before, "unfinished" if ended else "preliminary").runs == ["lr=0.001 seed=0", "lr=0.001 seed=1"]
    assert {group.label: list(group.missing) for group in at_the_end.conclusions.groups} == {
        "lr=0.001": [0, 1],
        "lr=0.002": [],
    }


@pytest.mark.parametrize("at_step", [None, 100])
def test_a_run_that_diverged_later_has_no_value_at_any_step(tmp_path: Path, at_step: int | None) -> None:
    steps = ([150, 150, 150, 200, 200], [200] * 5)
    status: tuple[list[str | None], list[str | None]] = (["diverged"] * 3 + ["completed"] * 2, ["completed"] * 5)
    comparison = compare(load_runs([write_settings(tmp_path, steps, status)]), at_step=at_step)
    group = next(group for group in comparison.conclusions.groups if group.label == "lr=0.001")
    assert (list(group.values), group.diverged, group.missing) == ([3, 4], (0, 1, 2), {})
    assert "without value" not in [note.kind for note in comparison.notes]  # no other step would give them one


def test_the_best_value_needs_all_shared_steps_and_the_final_value_a_completed_run(tmp_path: Path) -> None:
    steps = ([150, 200, 200], [200] * 3)
    runs = load_runs([write_settings(tmp_path, steps, (["pruned", "completed", "completed"], ["completed"] * 3))])
    for value in ("best", "final"):
        comparison = compare(runs, value=value)
        assert sizes(comparison) == {"lr=0.001": 2, "lr=0.002": 3}
        assert "--at-step 150 compares all 6" in note(comparison, "without value").text


def test_a_value_that_no_run_has_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    runs = load_runs([write_settings(tmp_path, ([150] * 2, [150] * 2), ([None] * 2, [None] * 2))])
    way_out = "; --at-step 150 compares at the last step that they share"
    with pytest.raises(ValueError, match="--value final: no run has completed" + way_out):
        compare(runs, value="final")
    with pytest.raises(ValueError, match="--at-step 180: no run has this value" + way_out):
        compare(runs, at_step=180)
    for run in runs:
        run.metrics["flops"][:] = np.nan
    with pytest.raises(ValueError, match="--value at-flops: no run has this value" + way_out):
        compare(runs, value="at-flops")


def test_before_the_first_evaluation_another_metric_is_named(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path / str(seed), {"seed": seed}, steps=40, status=None)
    runs = load_runs([tmp_path])
    with pytest.raises(ValueError, match="--metric val/loss: no run has this metric; did you mean train/loss"):
        compare(runs)
    for run in runs:
        for column in run.metrics.values():
            column[:] = np.nan
    assert "nothing to compare" in compare(runs).conclusions.sentences[0]


STEPS = np.arange(50.0, 601.0, 50.0)


def simulated_run(setting: float, seed: int, losses: np.ndarray, status: str) -> ComparedRun:
    """Return a run as if it had been read from files."""
    config = {"seed": seed, "optimizer.lr": setting, "trainer.max_steps": 600}
    steps = STEPS[: len(losses)]
    metrics = {"step": steps, "tokens": steps * 1e3, "flops": steps * 1e6, "seconds": steps / 2, "val/loss": losses}
    path = Path(f"{setting}-{seed}")
    return ComparedRun(path, str(path), config, status, {"status": status}, {}, metrics, None, None, setting=config)


def pruned_table(generator: np.random.Generator, place: int) -> list[ComparedRun]:
    """Return five seeds of two equal settings; the worst two of the first setting are pruned at an evaluation."""
    losses = 3 + 0.03 * generator.standard_normal((2, 5, 1)) + 0.02 * generator.standard_normal((2, 5, len(STEPS)))
    worst = np.argsort(losses[0, :, place])[-2:]
    ends = np.full((2, 5), len(STEPS))
    ends[0, worst] = place + 1
    return [
        simulated_run((1e-3, 2e-3)[setting], seed, losses[setting, seed, : ends[setting, seed]],
                      "completed" if ends[setting, seed] == len(STEPS) else "pruned")
        for setting in (0, 1)
        for seed in range(5)
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("before", [0, 2])
def test_pruning_does_not_bias_a_comparison_at_a_step_that_all_runs_reached(before: int) -> None:
    """With the survivors alone, 10 to 20 in 100 such tables said that one of two equal settings is better."""
    generator = np.random.default_rng(5)
    tables, place = 250, 5
    wrong = 0
    for _ in range(tables):
        comparison = compare(pruned_table(generator, place), at_step=int(STEPS[place - before]))
        assert sizes(comparison) == {"lr=0.001": 5, "lr=0.002": 5}
        wrong += any("better than" in sentence for sentence in comparison.conclusions.sentences)
    assert wrong / tables <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
