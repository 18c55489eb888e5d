"""Tests verdicts on several settings: that they hold after any number of looks, and agree with the intervals."""

import math

import numpy as np
import pytest

from lmtrain.comparison.looking.race import first_verdict, race
from lmtrain.comparison.looking.sentences import _sentences, looking_again
from lmtrain.comparison.statistics.conclusions import conclude
from lmtrain.comparison.statistics.group import ReplicateGroup

LOOKS = range(2, 41)


def groups(values: np.ndarray) -> list[ReplicateGroup]:
    return [ReplicateGroup(str(place), {}, dict(enumerate(row))) for place, row in enumerate(values)]


@pytest.mark.parametrize("settings", [2, 3, 10])
def test_equal_settings_are_rarely_told_apart_however_often_one_looks(settings: int) -> None:
    generator = np.random.default_rng(settings)
    seeds = generator.standard_normal((1000, 1, 40))  # what a seed does to all settings alike
    noise = generator.standard_normal((1000, settings, 40))
    noise[:, 0] *= 10  # one setting is much noisier
    wrong = (first_verdict(3 * seeds + noise, LOOKS) > 0).mean()
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 1000)


def test_heavy_tails_do_not_break_the_promise() -> None:
    values = np.random.default_rng(1).standard_t(3, (1000, 3, 40))
    assert (first_verdict(values, LOOKS) > 0).mean() <= 0.05


def test_the_simulation_and_the_verdicts_are_the_same_test() -> None:
    values = np.random.default_rng(2).standard_normal((20, 3, 12)) + np.array([0, 0.5, 2.5])[:, None]
    for one, found in zip(values, first_verdict(values, range(2, 13)), strict=True):
        dropped = [seeds for seeds in range(2, 13) if race(groups(one[:, :seeds])).dropped]
        assert found == min(dropped, default=0)


def test_verdicts_and_intervals_agree() -> None:
    values = np.random.default_rng(3).standard_normal((60, 3, 9)) + np.array([0, 1.0, 3.0])[:, None]
    for one in values:
        found = race(groups(one))
        for pair in found.pairs.values():
            assert pair.is_decided == (pair.difference > pair.half_width) == (pair.p < 0.05)
        losers = {pair.worse.label for pair in found.pairs.values() if pair.is_decided}
        assert {pair.worse.label for pair in found.dropped} == losers
        left = {group.label for group in found.more} | ({found.keep.label} if found.keep else set())
        assert left == {"0", "1", "2"} - losers
        assert (found.keep is not None) == (len(losers) == 2)


def test_higher_is_better_with_the_opposite_sign() -> None:
    values = np.random.default_rng(4).standard_normal((2, 10)) + np.array([0, 4.0])[:, None]
    lower, higher = race(groups(values), sign=1).keep, race(groups(values), sign=-1).keep
    assert lower is not None
    assert higher is not None
    assert (lower.label, higher.label) == ("0", "1")


def test_one_setting_and_settings_without_values_in_common_need_no_verdict() -> None:
    assert race([]).more == []
    (only,) = groups(np.zeros((1, 3)))
    assert race([only]).keep is None
    other = ReplicateGroup("b", {}, {7: 1.0})
    found = race([only, other])
    assert found.keep is None
    assert found.pairs[0, 1].seeds == 0
    assert found.pairs[0, 1].half_width == math.inf


def test_a_setting_of_which_all_runs_diverged_is_in_no_verdict() -> None:
    values = np.random.default_rng(5).standard_normal((2, 12)) + np.array([0, 9.0])[:, None]
    diverged = ReplicateGroup("c", {}, {}, diverged=(0, 1))
    found = race([*groups(values), diverged])
    assert found.keep is not None
    assert [pair.worse.label for pair in found.dropped] == ["1"]
    sentences = _sentences(found, [*groups(values), diverged])
    assert sentences[0].startswith("keep 0, drop 1: 0 is better by ")
    assert sentences[1] == "no verdict on c: none of its runs has a value"


def test_with_a_baseline_all_others_are_compared_with_it() -> None:
    values = np.random.default_rng(6).standard_normal((3, 9)) + np.array([0, 4.0, 8.0])[:, None]
    found = groups(values)
    usual = conclude(found, baseline=found[1])
    conclusions, _ = looking_again(usual, 1)
    assert [comparison.other.label for comparison in conclusions.comparisons] == ["0", "2"]
    assert [comparison.verdict for comparison in conclusions.comparisons] == ["worse", "better"]
    for comparison in conclusions.comparisons:
        assert comparison.difference.value == pytest.approx(found[1].mean - comparison.other.mean)
    assert conclusions.sentences[0] == "keep 0: the 2 other settings are dropped"


def test_settings_that_differ_by_less_than_the_margin_need_no_more_seeds() -> None:
    values = np.random.default_rng(7).standard_normal((2, 15))
    usual = conclude(groups(values), margin=3.0)
    conclusions, found = looking_again(usual, 1)
    assert conclusions.sentences[0].startswith("the same within 3: ")
    assert found.more == []
    conclusions, found = looking_again(conclude(groups(values), margin=0.3), 1)
    assert conclusions.sentences[0].startswith("one more seed each for ")


def test_the_pairs_with_a_baseline_are_said_to_be_those_with_it() -> None:
    values = np.random.default_rng(5).standard_normal((3, 4)) + np.array([0, 1.0, 2.0])[:, None]
    own = groups(values)
    again, _ = looking_again(conclude(own, baseline=own[1]), sign=1)
    assert again.baseline is own[1]
    assert [pair.other.label for pair in again.comparisons] == ["0", "2"]
    assert again.comparisons[0].difference.value == pytest.approx(float(values[1].mean() - values[0].mean()))
