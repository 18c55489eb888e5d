"""Runs are compared at the same point of their schedules, with the same budget and on the same machines, or it is said.

Each scenario was called "better" without a word before.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.synthetic_runs import write_run

from lmtrain.comparison.comparable.conditions import schedule_point
from lmtrain.comparison.notes import Note
from lmtrain.comparison.run_comparison import RunComparison, compare
from lmtrain.comparison.run_values import EqualPlace
from lmtrain.comparison.runs import load_runs

NOISE = 0.01 * np.random.default_rng(0).standard_normal((2, 5))
CONSTANT = {"scheduler._target_": "lmtrain.scheduler.constant", "scheduler.warmup_steps": 0}


def two_settings(folder: Path, write: Callable[[Path, int, int], object], seeds: int = 3) -> Path:
    """Write runs of two settings with these seeds; `write` gets the folder of a run, its setting and its seed."""
    for setting in (0, 1):
        for seed in range(seeds):
            write(folder / f"{'ab'[setting]}{seed}", setting, seed)
    return folder


def write_lengths(folder: Path, *, decays: bool = True, changes: Mapping[str, Any] | None = None) -> Path:
    """Write runs of 600 and of 1,200 steps, the longer ones better at every step."""
    return two_settings(
        folder,
        lambda run, setting, seed: write_run(
            run,
            {"seed": seed, **(changes or {})},
            steps=600 * (setting + 1),
            log_interval=50,
            decays=decays,
            final_loss=(3.0, 2.6)[setting] + float(NOISE[setting, seed]),
        ),
    )


def verdict(comparison: RunComparison) -> str:
    return comparison.conclusions.sentences[0]


def notes(comparison: RunComparison) -> list[Note]:
    """Return the notes, without those about repeated looks."""
    return [note for note in comparison.notes if note.kind != "looks"]


def test_a_decayed_run_gets_no_verdict_against_one_that_still_decays(tmp_path: Path) -> None:
    runs = load_runs([write_lengths(tmp_path)])
    for value in ("at-step", "at-tokens", "at-flops", "best"):
        comparison = compare(runs, value=value)
        assert comparison.conclusions.comparisons == []
        assert verdict(comparison).startswith("no verdict: at ")
        assert "lr 0.0003 after 600 of 600 steps (max_steps=600), 0.00171 after 600 of 1,200 steps" in verdict(
            comparison
        )
        assert "--value final compares each at its end" in verdict(comparison)
        assert notes(comparison)[0] not in comparison.further_notes  # the sentence says it
    assert len(compare(runs).conclusions.groups) == 2  # their means are shown


def test_a_chosen_step_in_unequal_schedules_marks_the_verdict(tmp_path: Path) -> None:
    comparison = compare(load_runs([write_lengths(tmp_path)]), at_step=600)
    assert verdict(comparison).startswith("at different learning rates: max_steps=1200 is better")
    assert comparison.conclusions.comparisons[0].sentence == verdict(comparison)
    assert [note.kind for note in notes(comparison)] == ["schedules"]
    assert notes(comparison)[0] in comparison.further_notes


def test_final_values_of_unequal_budgets_are_marked(tmp_path: Path) -> None:
    comparison = compare(load_runs([write_lengths(tmp_path)]), value="final")
    assert verdict(comparison).startswith("each at its own end: max_steps=1200 is better")
    (note,) = notes(comparison)
    assert note.kind == "budgets"
    assert "step 600 (max_steps=600), 1,200 (max_steps=1200); --value at-step" in note.text
    assert len(note.runs) == 6


def test_a_constant_schedule_has_no_end_that_could_be_missed(tmp_path: Path) -> None:
    runs = load_runs([write_lengths(tmp_path, decays=False, changes=CONSTANT)])
    assert verdict(compare(runs)).startswith("max_steps=1200 is better")
    assert notes(compare(runs)) == []


def test_equal_tokens_at_the_ends_of_both_schedules_are_an_equal_look(tmp_path: Path) -> None:
    """Half the steps with twice the tokens each: an equal step is no equal look, but equal tokens are."""

    def write(run: Path, setting: int, seed: int) -> None:
        steps = 400 // (setting + 1)
        changes = {"seed": seed, "data.batch_size": 8 * (setting + 1)}
        write_run(run, changes, steps=steps, decays=True, final_loss=3 + setting / 4 + float(NOISE[setting, seed]))

    runs = load_runs([two_settings(tmp_path, write)])
    for run in runs:
        run.metrics["tokens"][:] = run.metrics["step"] * 128 * run.config["data.batch_size"]
    assert verdict(compare(runs)).startswith("no verdict: ")
    at_tokens = compare(runs, value="at-tokens")
    assert "better" in verdict(at_tokens)
    assert notes(at_tokens) == []
    assert notes(compare(runs, value="final")) == []  # the budgets are equal in tokens


def test_schedules_of_other_shapes_are_compared_at_their_ends(tmp_path: Path) -> None:
    def write(run: Path, setting: int, seed: int) -> None:
        changes = {"seed": seed, **(CONSTANT if setting else {})}
        write_run(run, changes, decays=not setting, final_loss=3 + setting / 5 + float(NOISE[setting, seed]))

    runs = load_runs([two_settings(tmp_path, write)])
    assert notes(compare(runs)) == []
    (note,) = notes(compare(runs, at_step=100))
    assert "their shapes differ" in note.text
    assert not note.refuses


def test_a_schedule_point_is_read_from_the_logged_learning_rate(tmp_path: Path) -> None:
    write_run(tmp_path / "done", steps=200, decays=True)
    write_run(tmp_path / "live", {"trainer.max_steps": 200}, steps=100, decays=True, status=None)
    write_run(tmp_path / "none").joinpath("metrics.jsonl").write_text('{"step": 1, "val/loss": 3}\n')
    done, live, none = load_runs([tmp_path])
    halfway, end = (EqualPlace("step", step, True) for step in (100.0, 200.0))
    assert schedule_point(none, halfway) is None
    point = schedule_point(done, halfway)
    assert point is not None
    assert point == schedule_point(live, halfway)
    assert (point.progress, point.decays) == (0.5, True)
    assert str(point) == f"{done.metrics['lr'][99]:.3g} after 100 of 200 steps"
    last = schedule_point(done, end)
    assert last is not None
    assert not last.decays


@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        ({"value": "at-seconds"}, "--value at-flops does not depend on the machine"),
        ({"metric": "mfu"}, "--filter 'host="),
    ],
)
def test_times_of_two_machines_get_no_verdict(tmp_path: Path, options: dict[str, str], way_out: str) -> None:
    def write(run: Path, setting: int, seed: int) -> None:
        machine = {"host": "ab"[setting], "cpu": "EPYC", "device": "cpu"}
        changes = {"seed": seed, "optimizer.lr": (1e-3, 2e-3)[setting]}
        write_run(run, changes, final_loss=3 + float(NOISE[setting, seed]), speed=setting + 1, environment=machine,
                  metrics={"mfu": 0.2 * (setting + 1) + float(NOISE[setting, seed])})  # fmt: skip

    comparison = compare(load_runs([two_settings(tmp_path, write)]), **options)
    assert verdict(comparison).startswith("no verdict: the runs used different machines: a (lr=0.001), b (lr=0.002)")
    assert way_out in verdict(comparison)


@pytest.mark.parametrize(
    ("hosts", "cpus", "refused"),
    [
        (["a", "b", "c", "a", "b", "c"], "xxxxxx", False),  # each setting on each machine once
        (["a", "b", "c", "d", "e", "f"], "xxxxxx", False),  # each run on a machine of its own
        (["a", "b", "c", "d", "e", "f"], "xxxxxy", True),
        (["a", "a", "a", "a", "b", "b"], "xxxxxx", True),
        (["a", "a", "a", "a", "a", "a"], "xxxxxx", None),
    ],
)
def test_machines_are_equal_if_each_setting_ran_on_all_or_each_run_on_its_own(
    tmp_path: Path, hosts: list[str], cpus: str, refused: bool | None
) -> None:
    def write(run: Path, setting: int, seed: int) -> None:
        changes = {"seed": seed, "optimizer.lr": (1e-3, 2e-3)[setting]}
        machine = {"host": hosts[3 * setting + seed], "cpu": cpus[3 * setting + seed]}
        write_run(run, changes, steps=100, final_loss=3 + float(NOISE[setting, seed]), environment=machine)

    comparison = compare(load_runs([two_settings(tmp_path, write)]), value="at-seconds")
    assert [note.refuses for note in comparison.notes if note.kind == "machines"] == [refused] * (refused is not None)
    assert notes(compare(comparison.runs)) == []
