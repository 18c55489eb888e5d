"""What is said after each pair: keep, drop, one more, or that the budget is spent."""

import math

import pytest

from lmtrain.comparison.statistics.sequential import log_e_value
from lmtrain.decide.pairs import SeedPair
from lmtrain.decide.rule import REASONS, Budget, judge

NOISE = [0.01, -0.01, 0.005, -0.005, 0.012, -0.012, 0.003]
COST = {"seconds": 10.0, "tokens": 1000.0, "flops": 1e6}


def pair(seed: int, gain: float | None, statuses: tuple[str, str] = ("completed", "completed")) -> SeedPair:
    value = None if gain is None else 3 - gain
    return SeedPair(seed, 3.0, value, gain, statuses, {"baseline": COST, "challenger": COST})


def pairs(gain: float, count: int = len(NOISE)) -> list[SeedPair]:
    return [pair(seed, gain + noise) for seed, noise in enumerate(NOISE[:count], start=1)]


def verdict(found: list[SeedPair], level: float = 0.05, margin: float = 0.0, **budget: float) -> tuple[str, str]:
    limits = {"pairs": 20, **budget}
    judgement = judge(found, level=level, margin=margin, budget=Budget(int(limits.pop("pairs")), **limits))
    assert judgement.reason in REASONS
    return judgement.verdict, judgement.reason


@pytest.mark.parametrize(
    ("gain", "margin", "budget", "expected"),
    [
        (0.05, 0.0, {}, ("keep", "better")),
        (0.05, 0.5, {}, ("drop", "too little")),
        (-0.05, 0.0, {}, ("drop", "worse")),
        (-0.004, 0.0, {"pairs": 8}, ("drop", "hopeless")),
        (0.004, 0.0, {"pairs": 40}, ("more", "undecided")),
        (0.004, 0.0, {"pairs": 7}, ("undecided", "budget")),
        (0.004, 0.0, {"tokens": 14_000}, ("undecided", "budget")),
        (0.004, 0.0, {"seconds": 159}, ("undecided", "budget")),
        (0.004, 0.0, {"flops": 1e9}, ("more", "undecided")),
    ],
)
def test_verdicts(gain: float, margin: float, budget: dict[str, float], expected: tuple[str, str]) -> None:
    assert verdict(pairs(gain), margin=margin, **budget) == expected


def test_a_keep_needs_the_evidence_of_its_level() -> None:
    for count in range(1, len(NOISE) + 1):
        found = pairs(0.02, count)
        evidence = log_e_value([one.gain for one in found if one.gain is not None])
        for level in (0.2, 0.01, 0.0001):
            assert (verdict(found, level)[0] == "keep") == (evidence >= -math.log(level))


def test_no_pair_and_one_pair_say_nothing() -> None:
    assert verdict([]) == verdict(pairs(5.0, 1)) == ("more", "undecided")


def test_equal_runs_are_no_effect() -> None:
    assert verdict([pair(1, 0.0), pair(2, 0.0)]) == ("drop", "no effect")


def test_a_challenger_that_diverged_or_was_stopped_is_dropped_however_good_its_other_runs() -> None:
    for status, reason in (("diverged", "diverged"), ("pruned", "far behind")):
        assert verdict([*pairs(0.05), pair(8, None, ("completed", status))]) == ("drop", reason)


def test_seeds_with_which_the_baseline_diverged_are_left_out() -> None:
    others = [pair(8, None, ("diverged", "completed")), pair(9, None, ("diverged", "diverged"))]
    assert verdict([*pairs(0.05), *others]) == ("keep", "better")
    assert verdict([*pairs(0.004), *others], pairs=9) == ("undecided", "budget")


def test_the_record_has_only_numbers_that_json_has() -> None:
    first = judge(pairs(1.0, 1), level=0.05, margin=0.0, budget=Budget(5)).recorded()
    assert (first["interval"], first["p"]) == ([None, None], 1.0)
    low, high = judge(pairs(0.05), level=0.05, margin=0.0, budget=Budget(5)).recorded()["interval"]
    assert 0 < low < 0.05 < high
