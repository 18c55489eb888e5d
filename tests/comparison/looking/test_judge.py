"""Tests that compare finds out from a sweep's files whether seeds were added after a look, and what it then says."""

import re
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.synthetic_runs import write_run

from lmtrain.comparison.looking.design import record_start
from lmtrain.comparison.looking.looks import Mode
from lmtrain.comparison.run_comparison import RunComparison, compare
from lmtrain.comparison.runs import load_runs

NOISE = np.random.default_rng(0).standard_normal((3, 20))
RATES = (0.001, 0.003)


def overrides(rate: float, seed: int) -> list[str]:
    return ["experiments=quickstart", f"optimizer.lr={rate}", f"seed={seed}"]


def start(sweep: Path, seeds: range, rates: tuple[float, ...] = RATES) -> None:
    """Record a start of a sweep over learning rates and seeds, as the sweeper does."""
    jobs = [(rate, seed) for rate in rates for seed in seeds]
    record_start(sweep, [(sweep / f"lr={rate},seed={seed}", overrides(rate, seed)) for rate, seed in jobs])


def run_jobs(sweep: Path, seeds: range, rates: Mapping[float, float], **options: Any) -> None:
    """Write the runs of these seeds; `rates` has the mean loss of each learning rate."""
    for place, (rate, loss) in enumerate(rates.items()):
        for seed in seeds:
            changes = {"optimizer.lr": rate, "seed": seed}
            final = loss + 0.01 * float(NOISE[place, seed])
            folder = sweep / f"lr={rate},seed={seed}"
            write_run(folder, changes, final_loss=final, log_interval=50, **options)


def judged(sweep: Path, mode: Mode | None = None, **options: Any) -> RunComparison:
    return compare(load_runs([sweep]), mode=mode, **options)


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sys, "argv", ["lmtrain", *given(tmp_path / "sweep").split()])
    (tmp_path / "sweep").mkdir()
    return tmp_path / "sweep"


def given(sweep: Path) -> str:
    return f"-m experiments=quickstart optimizer.lr=0.001,0.003 seed=range(1,4) hydra.sweep.dir={sweep} logger=[]"


def line(comparison: RunComparison, beginning: str) -> str:
    (found,) = [text for text in comparison.conclusions.sentences if text.startswith(beginning)]
    return found


def test_a_sweep_that_ended_as_planned_is_judged_by_the_usual_test(sweep: Path) -> None:
    start(sweep, range(1, 6))
    run_jobs(sweep, range(1, 6), {0.001: 3.0, 0.003: 3.1})
    comparison = judged(sweep)
    assert comparison.looks.mode == "planned"
    assert "is better than" in comparison.conclusions.sentences[0]
    assert "the number of seeds was fixed before the first result" in line(comparison, "planned: ")


def test_a_continued_sweep_with_the_same_runs_is_no_second_look(sweep: Path) -> None:
    start(sweep, range(1, 6))
    run_jobs(sweep, range(1, 4), {0.001: 3.0, 0.003: 3.1})
    early = judged(sweep)
    assert early.looks.mode == "again"
    assert "4 planned runs have not ended yet" in line(early, "again: ")
    assert line(early, "to run what is missing: ").endswith(f"hydra.sweep.dir={sweep}")
    start(sweep, range(1, 6))
    run_jobs(sweep, range(4, 6), {0.001: 3.0, 0.003: 3.1})
    assert judged(sweep).looks.mode == "planned"


def test_seeds_that_were_added_after_results_are_a_second_look(sweep: Path) -> None:
    start(sweep, range(1, 4))
    run_jobs(sweep, range(1, 4), {0.001: 3.0, 0.003: 3.002})
    start(sweep, range(1, 7))
    run_jobs(sweep, range(4, 7), {0.001: 3.0, 0.003: 3.002})
    comparison = judged(sweep)
    assert comparison.looks.mode == "again"
    first, *_ = comparison.conclusions.sentences
    assert first.startswith("one more seed each for lr=")
    assert "of the 20 that are needed (6 common seeds)" in first
    assert "seeds were added after there were results" in line(comparison, "again: ")
    words = shlex.split(line(comparison, "to add a seed: ").removeprefix("to add a seed: python -m lmtrain "))
    assert words == [
        "-m",
        "experiments=quickstart",
        "logger=[]",
        "optimizer.lr=0.001,0.003",
        "seed=7",
        f"hydra.sweep.dir={sweep}",
    ]


def test_seeds_that_were_added_before_any_result_are_no_second_look(sweep: Path) -> None:
    start(sweep, range(1, 4))
    start(sweep, range(1, 6))
    run_jobs(sweep, range(1, 6), {0.001: 3.0, 0.003: 3.1})
    assert judged(sweep).looks.mode == "planned"


def test_a_setting_that_was_added_later_is_no_second_look_at_the_others(sweep: Path) -> None:
    start(sweep, range(1, 4))
    run_jobs(sweep, range(1, 4), {0.001: 3.0, 0.003: 3.1})
    start(sweep, range(1, 4), (0.01,))
    run_jobs(sweep, range(1, 4), {0.01: 3.3})
    assert judged(sweep).looks.mode == "planned"


def test_settings_are_dropped_and_only_the_others_get_one_more_seed(sweep: Path) -> None:
    rates = {0.001: 3.0, 0.003: 3.001, 0.01: 3.4}
    start(sweep, range(1, 4), tuple(rates))
    run_jobs(sweep, range(1, 4), rates)
    start(sweep, range(4, 9), tuple(rates))
    run_jobs(sweep, range(4, 9), rates)
    comparison = judged(sweep)
    first, *_ = comparison.conclusions.sentences
    assert re.match(r"one more seed each for lr=0.00[13], lr=0.00[13]: .* of the 60 that are needed", first)
    assert "is better by 0.4" in line(comparison, "drop lr=0.01: ")
    assert "optimizer.lr=0.001,0.003 seed=9" in line(comparison, "to add a seed: ")
    assert "for all 3 pairs at once (Bonferroni)" in line(comparison, "±")


def test_with_enough_evidence_one_is_kept(sweep: Path) -> None:
    start(sweep, range(1, 4))
    run_jobs(sweep, range(1, 4), {0.001: 3.0, 0.003: 3.1})
    start(sweep, range(4, 7))
    run_jobs(sweep, range(4, 7), {0.001: 3.0, 0.003: 3.1})
    comparison = judged(sweep)
    first = comparison.conclusions.sentences[0]
    assert first.startswith("keep lr=0.001, drop lr=0.003: lr=0.001 is better by 0.099 ± 0.0")
    assert "where 20 is enough; 6 common seeds" in first
    (pair,) = comparison.conclusions.comparisons
    assert pair.p < 0.05
    assert abs(pair.difference.value) > pair.difference.half_width
    assert not any(text.startswith("to add a seed") for text in comparison.conclusions.sentences)


def test_a_seed_that_only_one_setting_has_is_run_next(sweep: Path) -> None:
    start(sweep, range(1, 4))
    run_jobs(sweep, range(1, 4), {0.001: 3.0, 0.003: 3.002})
    start(sweep, range(4, 6), (0.001,))
    run_jobs(sweep, range(4, 6), {0.001: 3.0})
    assert " seed=4 " in line(judged(sweep), "to add a seed: ")


def test_settings_without_common_seeds_have_no_pairs(sweep: Path) -> None:
    start(sweep, range(1, 4), (0.001,))
    run_jobs(sweep, range(1, 4), {0.001: 3.0})
    start(sweep, range(4, 7), (0.003,))
    run_jobs(sweep, range(4, 7), {0.003: 3.1})
    first, *_ = judged(sweep, "again").conclusions.sentences
    assert "no seed in common; verdicts are from pairs of equal seeds" in first


def test_runs_of_which_no_sweep_tells_are_named_in_a_note(sweep: Path, tmp_path: Path) -> None:
    run_jobs(sweep, range(1, 4), {0.001: 3.0, 0.003: 3.1})
    comparison = judged(sweep)
    assert comparison.looks.mode == "unknown"
    (note,) = [note for note in comparison.notes if "use --again" in note.text]
    assert "no single sweep with a design.jsonl" in note.text
    # A record that begins after the runs tells nothing about them.
    start(sweep, range(1, 4))
    assert "had results before its design was recorded" in judged(sweep).looks.reason


def test_a_run_by_hand_several_sweeps_and_left_out_seeds_are_unknown(sweep: Path, tmp_path: Path) -> None:
    start(sweep, range(1, 5))
    run_jobs(sweep, range(1, 5), {0.001: 3.0, 0.003: 3.1})
    runs = load_runs([sweep])
    fewer = [run for run in runs if run.seed != 4]
    assert "2 planned runs have been left out" in compare(fewer).looks.reason
    other = tmp_path / "other"
    other.mkdir()
    start(other, range(5, 8))
    run_jobs(other, range(5, 8), {0.001: 3.0, 0.003: 3.1})
    assert "several sweeps" in compare(load_runs([sweep, other])).looks.reason
    write_run(sweep / "by-hand", {"optimizer.lr": 0.001, "seed": 9}, log_interval=50)
    assert "the sweep did not plan lr=0.001 seed=9" in judged(sweep).looks.reason


def test_the_mode_can_be_chosen_and_what_the_files_say_is_kept(sweep: Path) -> None:
    start(sweep, range(1, 4))
    run_jobs(sweep, range(1, 4), {0.001: 3.0, 0.003: 3.1})
    asked = judged(sweep, "again")
    assert line(asked, "again, because of --again, ").endswith("before the first result")
    assert any("hold for one look" in note.text for note in asked.notes)  # the effects still have the usual p
    assert not any("hold for one look" in note.text for note in judged(sweep).notes)
    start(sweep, range(4, 6))
    run_jobs(sweep, range(4, 6), {0.001: 3.0, 0.003: 3.1})
    planned = judged(sweep, "planned")
    assert "but seeds were added after there were results" in line(planned, "planned, because of --planned: ")
    assert "is better than" in planned.conclusions.sentences[0]


def test_a_setting_that_diverged_more_often_is_not_kept(sweep: Path) -> None:
    start(sweep, range(1, 3))
    run_jobs(sweep, range(1, 3), {0.001: 3.0, 0.003: 3.1})
    start(sweep, range(3, 11))
    run_jobs(sweep, range(3, 9), {0.001: 3.0, 0.003: 3.1})
    run_jobs(sweep, range(9, 11), {0.003: 3.1})
    run_jobs(sweep, range(9, 11), {0.001: 3.0}, status="diverged")
    first, *_ = judged(sweep).conclusions.sentences
    assert first.startswith("cannot tell lr=0.001 from lr=0.003: more seeds of lr=0.001 have no value")


def test_runs_of_a_campaign_are_judged_as_looked_at_again_and_again(sweep: Path) -> None:
    run_jobs(sweep / "runs", range(1, 6), {0.001: 3.0, 0.003: 3.1})
    (sweep / "decisions.jsonl").write_text("", encoding="utf-8")
    comparison = judged(sweep)
    assert comparison.looks.mode == "again"
    assert "campaign" in line(comparison, "again")
