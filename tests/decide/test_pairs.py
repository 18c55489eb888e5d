"""The values of a pair of runs, and runs that cannot be compared."""

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from support.synthetic_runs import PARAMETERS, STEP_TOKENS, write_run

from lmtrain.decide.pairs import Question, SeedPair, read_pair, total_cost
from lmtrain.errors import ConfigError
from lmtrain.sweep.job import Job, JobEnd


def ended(folder: Path, **options: Any) -> JobEnd:
    write_run(folder, **options)
    result = json.loads((folder / "result.json").read_text())
    return JobEnd(Job((), folder, folder.name), result["status"], None, None, result, ran=True)


def read(ends: tuple[JobEnd, JobEnd], *question: Any) -> SeedPair:
    return read_pair(7, ends, Question(*question))


def test_the_value_is_that_at_the_last_step_that_both_have(tmp_path: Path) -> None:
    ends = ended(tmp_path / "a", steps=200, final_loss=3.0), ended(tmp_path / "b", steps=100, final_loss=3.2)
    pair = read(ends)
    at_100 = 3.0 * 0.5**-0.1
    assert pair.baseline == pytest.approx(at_100)
    assert (pair.challenger, pair.gain) == (pytest.approx(3.2), pytest.approx(at_100 - 3.2))
    assert read(ends, "val/loss", "at-step", True).gain == pytest.approx(3.2 - at_100)
    assert read(ends, "val/loss", "final").baseline == pytest.approx(3.0)
    # The best over the evaluations that both have: a longer run would have more chances.
    assert read(ends, "val/loss", "best").baseline == pytest.approx(at_100)
    assert pair.cost["baseline"]["tokens"] == 200 * STEP_TOKENS
    assert total_cost([pair, pair])["flops"] == 2 * 300 * STEP_TOKENS * 6 * PARAMETERS


def test_a_run_without_a_value_has_no_gain(tmp_path: Path) -> None:
    good, diverged = ended(tmp_path / "a"), ended(tmp_path / "b", status="diverged")
    for ends, lost in (((good, diverged), True), ((diverged, good), False), ((diverged, diverged), False)):
        pair = read(ends)
        assert (pair.gain, pair.challenger_lost) == (None, lost)
        json.dumps(pair.recorded(), allow_nan=False)


def test_runs_that_measure_something_else_are_refused(tmp_path: Path) -> None:
    other = {"data": {"train": "0f8e", "val": "another text"}}
    ends = ended(tmp_path / "a"), ended(tmp_path / "b", environment=other)
    with pytest.raises(ConfigError, match=r"no verdict between .* their val/loss does not measure the same"):
        read(ends)


@pytest.mark.parametrize("value", ["at-step", "at-tokens", "best"])
def test_a_run_that_has_decayed_is_not_compared_with_one_half_way_down(value: str, tmp_path: Path) -> None:
    ends = ended(tmp_path / "a", decays=True), ended(tmp_path / "b", steps=100, decays=True)
    with pytest.raises(ConfigError, match=rf"--value {value}: at .* different points of their schedules: lr .*--value"):
        read(ends, "val/loss", value)
    assert read(ends, "val/loss", "final").gain == pytest.approx(0)


def test_runs_of_changed_code_are_not_a_pair(tmp_path: Path) -> None:
    versions = [{"code": {"model": {"own.model": text, "own": "1"}, "logger.own": {"log": text}}} for text in "ab"]
    ends = tuple(ended(tmp_path / name / "seed=7", environment=one) for name, one in zip("ab", versions, strict=True))
    os.utime(ends[0].job.directory / "config.yaml", (0, 0))
    message = f"model: own.model changed between the runs with seed 7, .* move {re.escape(str(tmp_path / 'a'))} away"
    with pytest.raises(ConfigError, match=message):
        read((ends[0], ends[1]))


@pytest.mark.parametrize("code", [{}, None, {"model": 7}, {"model": {"other.model": "x"}}])
def test_code_that_only_the_challenger_has_is_part_of_its_change(code: Any, tmp_path: Path) -> None:
    ends = (
        ended(tmp_path / "a", environment={"code": code}),
        ended(tmp_path / "b", environment={"code": {"model": {"own.model": "b"}}}),
    )
    assert read(ends).notes == ()


def test_another_version_of_lmtrain_is_noted(tmp_path: Path) -> None:
    ends = tuple(ended(tmp_path / name, environment={"lmtrain_source": name}) for name in "ab")
    pair = read((ends[0], ends[1]))
    assert pair.recorded()["notes"] == list(pair.notes)
    assert "different versions of lmtrain's code" in pair.notes[0]


def test_a_metric_that_the_runs_do_not_have_is_named_with_those_that_they_have(tmp_path: Path) -> None:
    ends = ended(tmp_path / "a"), ended(tmp_path / "b")
    with pytest.raises(
        ConfigError, match=r"--metric val/accuracy: .* seed 7 share no value of it; they have .*val/loss"
    ):
        read(ends, "val/accuracy")
