"""The power of planned comparisons agrees with published tables and with simulations of the real test."""

import numpy as np
import pytest
from scipy import stats

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.differences import Differences
from lmtrain.comparison.statistics.noise.model import fit_noise
from lmtrain.comparison.statistics.noise.power import POWER, power, seeds_needed


@pytest.mark.parametrize(("difference", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10)])
def test_the_seeds_of_pairs_agree_with_published_tables(difference: float, seeds: int) -> None:
    assert seeds_needed(difference, 1.0) == seeds  # paired t-test, alpha 0.05, power 0.80 (Cohen 1988; G*Power)
    t = difference * np.sqrt(seeds)
    critical = stats.t.ppf(0.975, seeds - 1)
    assert power(difference, 1.0, seeds) == pytest.approx(stats.nct.sf(critical, seeds - 1, t), abs=1e-6)
    assert power(difference, 1.0, seeds) >= POWER > power(difference, 1.0, seeds - 1)


def test_no_number_of_seeds_detects_a_difference_of_zero() -> None:
    assert seeds_needed(0.0, 1.0) is None
    assert seeds_needed(1e-9, 1.0) is None
    assert seeds_needed(0.1, 0.0) == 2


def test_the_fewest_seeds_are_found_for_many_settings() -> None:
    needed = seeds_needed(1.0, 1.0, settings=10)
    assert needed is not None
    assert power(1.0, 1.0, needed, settings=10) >= POWER > power(1.0, 1.0, needed - 1, settings=10)


@pytest.mark.slow
@pytest.mark.parametrize("settings", [2, 4])
def test_the_seeds_needed_detect_the_difference_four_times_in_five(settings: int) -> None:
    seeds = seeds_needed(1.5, np.sqrt(2), settings=settings)
    assert seeds is not None
    generator = np.random.default_rng(1)
    detected = []
    for _ in range(600):
        table = generator.standard_normal((settings, seeds)) + 5 * generator.standard_normal(seeds)
        table[0] -= 1.5
        model = fit_noise([ReplicateGroup(str(place), {}, dict(enumerate(row))) for place, row in enumerate(table)])
        assert model is not None
        detected.append(Differences(model).between(0, 1)[1] < 0.05)
    assert np.mean(detected) == pytest.approx(power(1.5, np.sqrt(2), seeds, settings=settings), abs=0.05)
