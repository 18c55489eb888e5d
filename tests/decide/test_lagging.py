"""A challenger's run is stopped only if no pair has ever made up for so much."""

import numpy as np

from lmtrain.decide.lagging import FEWEST_PAIRS, Curve, hope, noise_of, reason_to_stop

STEPS = np.array([10, 20, 30])


def curves(*paths: tuple[float, float, float]) -> list[Curve]:
    return [Curve("one", STEPS, np.array(path)) for path in paths]


KNOWN = curves((-0.5, -0.1, 0.0), (-0.2, 0.0, 0.01), (0.1, 0.0, -0.01), (-0.3, 0.0, 0.02), (0.0, 0.0, -0.02))


def test_the_hope_is_twice_the_most_that_any_pair_made_up_for() -> None:
    assert hope(10, -2.0, KNOWN) == -2.0 + 2 * 0.5
    assert hope(20, -2.0, KNOWN) == -2.0 + 2 * 0.1
    assert hope(15, -2.0, KNOWN) is None  # no pair was evaluated there
    assert hope(30, -2.0, KNOWN) is None  # the runs have ended
    assert hope(10, -2.0, KNOWN[: FEWEST_PAIRS - 1]) is None
    falling = curves(*[(0.5, 0.2, 0.0)] * 5)
    assert hope(10, -2.0, falling) == -2.0  # pairs that only fell back give no hope, and no despair


def test_a_run_is_stopped_only_if_it_stays_behind_by_far() -> None:
    noise = noise_of(KNOWN)
    assert noise is not None
    assert np.isclose(noise, np.std([0.0, 0.01, -0.01, 0.02, -0.02], ddof=1))
    limit = -2 * 0.5 - 6 * noise
    assert reason_to_stop(10, limit + 0.001, KNOWN) is None
    assert "decide stopped it at step 10" in (reason_to_stop(10, limit - 0.001, KNOWN) or "")
    assert reason_to_stop(10, 5.0, KNOWN) is None
    assert reason_to_stop(10, limit - 1, KNOWN[:3]) is None


def test_noise_is_pooled_over_ideas() -> None:
    two = [Curve("a", STEPS, np.array([0, 0, one])) for one in (1.0, 1.2)]
    other = [Curve("b", STEPS, np.array([0, 0, one])) for one in (-3.0, -3.4)]
    assert np.isclose(noise_of([*two, *other]) or 0, np.sqrt((2 * 0.1**2 + 2 * 0.2**2) / 2))
    assert noise_of([two[0], other[0]]) is None
