"""The reference rule is Welch's test with Holm's correction, and the claims of compare are read from its words."""

import numpy as np
from scipy import stats

from lmtrain.benchmark.verdicts.drawing import draw_table, equal_design, group
from lmtrain.benchmark.verdicts.rules import claims_of_compare, separate_tests


def test_separate_tests_agree_with_scipy() -> None:
    design = equal_design(4, 4, means=(0.0, 4.0, 4.5, 0.5))
    generator = np.random.default_rng(3)
    seen = 0
    for _ in range(50):
        groups = sorted(draw_table(design, generator), key=lambda group: group.mean)
        tests = {
            (a, b): stats.ttest_ind(groups[b].sample, groups[a].sample, equal_var=False)
            for a in range(4)
            for b in range(a + 1, 4)
        }
        ordered = sorted(tests, key=lambda pair: tests[pair].pvalue)
        corrected, highest = {}, 0.0
        for rank, pair in enumerate(ordered):
            highest = max(highest, tests[pair].pvalue * (len(ordered) - rank))
            corrected[pair] = highest
        claims = separate_tests(groups)
        expected = [(groups[0].label, groups[b].label) for b in (1, 2, 3) if corrected[0, b] < 0.05]
        assert claims.better == expected
        seen += len(expected)
        for b in (1, 2, 3):
            interval = tests[0, b].confidence_interval()
            np.testing.assert_allclose(claims.intervals[groups[b].label], (interval.low, interval.high))
    assert 50 < seen < 150


def test_claims_are_read_from_the_sentences() -> None:
    worse = [group(number, {seed: number + 0.001 * seed for seed in range(5)}) for number in range(1, 6)]
    best = group(0, {seed: 0.001 * (4 - seed) for seed in range(5)})
    claims = claims_of_compare([*worse, best])
    assert claims.best == "s0"
    assert claims.among == ["s0"]
    assert abs(claims.on_new_seeds - 0.002) < 0.001  # far ahead: nothing is luck
    assert set(claims.better) >= {("s0", f"s{number}") for number in range(1, 6)}
    assert all(low <= number <= high for number, (low, high) in enumerate(claims.intervals.values(), 1))
