"""The levels of a campaign against the formulas of e-LOND, and its guarantee in simulations with dependent e-values."""

import math

import numpy as np
import pytest

from lmtrain.comparison.statistics.online_fdr import level_share, needed_log_evidence, next_level


@pytest.mark.parametrize("planned", [1, 20, 100])
def test_the_shares_of_all_ideas_sum_to_one(planned: int) -> None:
    count = 10_000
    total = sum(level_share(number, planned) for number in range(1, count + 1))
    # The sum telescopes: 1/(planned + k − 1) − 1/(planned + k).
    assert total == pytest.approx(1 - planned / (planned + count), rel=1e-9)
    assert total < 1
    assert sum(level_share(number, planned) for number in range(1, planned + 1)) == pytest.approx(0.5)


def test_a_level_is_the_one_of_the_papers_formula() -> None:
    # e-LOND: alpha × gamma_t × (|R_{t−1}| + 1)
    assert next_level(1, 0, level=0.05, planned=100) == pytest.approx(0.05 * 1 / 101)
    assert next_level(7, 3, level=0.1, planned=20) == pytest.approx(0.1 * (20 / (26 * 27)) * 4)
    assert math.exp(needed_log_evidence(next_level(5, 2))) == pytest.approx(1 / next_level(5, 2))


@pytest.mark.parametrize(("number", "kept"), [(0, 0), (1, 1), (3, -1)])
def test_a_level_needs_possible_numbers(number: int, kept: int) -> None:
    with pytest.raises(ValueError, match=f"no level for idea {number} after {kept} kept"):
        next_level(number, kept)


@pytest.mark.parametrize("shared", [0.0, 0.5, 0.95])
def test_the_false_discovery_rate_holds_for_dependent_e_values(shared: float) -> None:
    """Gaussian e-values exp(λz − λ²/2) of 60 ideas, 6 of them true, with a common part; λ is the gain of a true one."""
    generator = np.random.default_rng(0)
    campaigns, ideas, gain, level = 2000, 60, 4.0, 0.2
    truth = np.zeros(ideas, dtype=bool)
    truth[generator.permutation(ideas)[:6]] = True
    common = math.sqrt(shared) * generator.standard_normal((campaigns, 1))
    z = common + math.sqrt(1 - shared) * generator.standard_normal((campaigns, ideas)) + gain * truth
    log_e = gain * z - gain**2 / 2
    kept = np.zeros((campaigns, ideas), dtype=bool)
    for idea in range(ideas):
        counts = kept.sum(axis=1)
        levels = np.array([next_level(idea + 1, int(count), level=level, planned=20) for count in counts])
        kept[:, idea] = log_e[:, idea] >= -np.log(levels)
    share = (kept & ~truth).sum(axis=1) / np.maximum(kept.sum(axis=1), 1)
    assert share.mean() <= level + 3 * share.std() / math.sqrt(campaigns)
    assert (kept & truth).sum(axis=1).mean() > 2
