"""Verdicts with a margin are read from the sentences of compare."""

import numpy as np

from lmtrain.benchmark.verdicts.drawing import equal_design
from lmtrain.benchmark.verdicts.scenarios.margins_and_baselines import AgainstBaseline, AtTheMargin


def test_equal_settings_with_many_seeds_are_the_same_and_one_at_the_margin_is_not() -> None:
    design = equal_design(3, 20, means=(0.0, 0.0, 2.0))
    for with_baseline in (False, True):
        wrong, *_, same = AtTheMargin(design, with_baseline)(30, np.random.default_rng(0))
        assert wrong.value < 0.2
        assert same.value > 0.8


def test_a_large_difference_from_the_baseline_is_found() -> None:
    with_baseline, all_pairs = AgainstBaseline(equal_design(3, 5, means=(0.0, 9.0, 9.0)))(20, np.random.default_rng(0))
    assert with_baseline.value == all_pairs.value == 1
