"""Draws conclusions from groups of replicates, as numbers and as plain sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmtrain.compare.statistics.effects import SettingEffects, effects
from lmtrain.compare.statistics.group import ReplicateGroup
from lmtrain.compare.statistics.significance import (
    ALPHA,
    MAX_SEEDS,
    MeanDifference,
    SeedNoise,
    holm_correction,
    paired_t_test,
    pooled_noise,
    pooled_t_test,
    seeds_needed,
    welch_t_test,
)
from lmtrain.terminal.units import counted

MIN_PAIRS = 5  # a paired test has half the degrees of freedom; with fewer pairs it loses more than it gains
MAX_HOLM_GROUPS = 60  # with more, testing all pairs takes too long: Bonferroni instead, which is stricter
SENTENCES = 3
LEAST_P = 0.0001  # smaller values are shown as "< 0.0001"
WOULD_DETECT = "each would detect a difference of"


@dataclass(frozen=True)
class GroupComparison:
    """A comparison of the best group with another group; `p` is corrected for all pairs."""

    other: ReplicateGroup
    difference: MeanDifference
    p: float
    sentence: str


@dataclass(frozen=True)
class Conclusions:
    """The results of the statistics. `groups` are sorted from best to worst; `sentences` say the results in words."""

    groups: Sequence[ReplicateGroup]
    noise: SeedNoise | None
    comparisons: Sequence[GroupComparison]
    effects: SettingEffects
    sentences: Sequence[str]


def conclude(
    groups: Sequence[ReplicateGroup],
    *,
    sign: int = 1,
    difference: float | None = None,
    refused: Sequence[str] = (),
) -> Conclusions:
    """Compare groups of replicates.

    Args:
        groups: The groups, in any order.
        sign: 1 if lower values are better, −1 if higher values are.
        difference: The difference to calculate the number of seeds for; None means the observed difference.
        refused: Why these groups allow no verdict, such as losses on different data; empty if they do.
    """
    ranked = sorted((group for group in groups if group.values), key=lambda group: sign * group.mean)
    noise = pooled_noise([group.sample for group in ranked])
    if not ranked:
        return Conclusions([], None, [], SettingEffects(), ["no run has this value: there is nothing to compare"])
    if len(ranked) == 1:
        return Conclusions(ranked, noise, [], SettingEffects(), [_one_group(ranked[0], noise)])
    if refused:
        return Conclusions(ranked, noise, [], SettingEffects(), [f"no verdict: {reason}" for reason in refused])
    if noise is None:
        return Conclusions(ranked, None, [], effects(groups, sign=sign), [_no_seeds(ranked)])
    comparisons = _comparisons(ranked, noise, difference)
    sentences = [comparison.sentence for comparison in comparisons[:SENTENCES]]
    rest = comparisons[SENTENCES:]
    if rest:
        worse = sum(comparison.p < ALPHA for comparison in rest)
        sentences.append(
            f"of the {len(rest)} other settings, {worse} {'is' if worse == 1 else 'are'} worse than "
            f"{ranked[0].label}, and {len(rest) - worse} cannot be told from it"
        )
    return Conclusions(
        ranked, noise, comparisons, effects(groups, sign=sign), [*sentences, *_remarks(ranked, comparisons)]
    )


def _compare_groups(a: ReplicateGroup, b: ReplicateGroup, noise: SeedNoise, *, may_pair: bool) -> MeanDifference:
    if min(len(a.values), len(b.values)) < 2:
        return pooled_t_test(a.sample, b.sample, noise)
    if may_pair and a.values.keys() == b.values.keys() and len(a.values) >= MIN_PAIRS and a.start == b.start:
        return paired_t_test(a.sample, [b.values[seed] for seed in a.values])
    return welch_t_test(a.sample, b.sample)


def _comparisons(ranked: Sequence[ReplicateGroup], noise: SeedNoise, wanted: float | None) -> list[GroupComparison]:
    """Compare the best group with each of the others.

    The best group was chosen by the same values that are tested, so p is corrected for all pairs of groups. Runs are
    paired by seed only if there are two groups: a test of a few pairs cannot pass the correction for many groups.
    """
    may_pair = len(ranked) == 2
    tests = [_compare_groups(ranked[0], other, noise, may_pair=may_pair) for other in ranked[1:]]
    pairs = len(ranked) * (len(ranked) - 1) // 2
    if len(ranked) <= MAX_HOLM_GROUPS:
        others = [
            _compare_groups(a, b, noise, may_pair=False).p
            for index, a in enumerate(ranked[1:], 1)
            for b in ranked[index + 1 :]
        ]
        ps = holm_correction([*(test.p for test in tests), *others])[: len(tests)].tolist()
    else:
        ps = [min(1.0, test.p * pairs) for test in tests]
    found = []
    for other, test, p in zip(ranked[1:], tests, ps, strict=True):
        verdict = _better(ranked[0], other, test, p) if p < ALPHA else _undecided(ranked[0], other, test, p, noise)
        if p >= ALPHA:
            verdict += _more_seeds(ranked[0], other, test, noise, wanted, ALPHA / pairs)
        found.append(GroupComparison(other, test, p, verdict))
    return found


def _better(a: ReplicateGroup, b: ReplicateGroup, test: MeanDifference, p: float) -> str:
    by = plus_minus(abs(test.value), test.half_width)
    return f"{a.label} is better than {b.label} by {by} ({p_in_words(p)}, {_seeds(a, b)})"


def _undecided(a: ReplicateGroup, b: ReplicateGroup, test: MeanDifference, p: float, noise: SeedNoise) -> str:
    return (
        f"cannot tell {a.label} from {b.label}: they differ by {plus_minus(abs(test.value), test.half_width)} "
        f"({p_in_words(p)}, {_seeds(a, b)}), and the noise between seeds is {noise.sd:.2g}"
    )


def _more_seeds(
    a: ReplicateGroup, b: ReplicateGroup, test: MeanDifference, noise: SeedNoise, wanted: float | None, alpha: float
) -> str:
    """Return, in words, how many more seeds would detect the difference with a power of 80%."""
    delta = abs(test.value) if wanted is None else wanted
    pairs = test.test.startswith("paired")
    sd = noise.sd
    if pairs:
        sd = pooled_sd if (pooled_sd := _sd_of_differences(a, b)) else sd
    needed = seeds_needed(delta, sd, pairs=pairs, alpha=alpha)
    if needed is None:
        return f"; not even {MAX_SEEDS:,} seeds {WOULD_DETECT} {delta:.2g}"
    more = needed - min(len(a.values), len(b.values))
    if more <= 0 and wanted is None:  # the noise of all groups predicts enough seeds, but these two groups are noisier
        return "; a few more seeds each may be enough"
    if more <= 0:
        return f"; a true difference of {delta:.2g} would be detected with these seeds four times in five"
    return f"; {counted(more, 'more seed')} {WOULD_DETECT} {delta:.2g}"


def _sd_of_differences(a: ReplicateGroup, b: ReplicateGroup) -> float:
    differences = [value - b.values[seed] for seed, value in a.values.items()]
    found = pooled_noise([differences])
    return found.sd if found else 0.0


def _one_group(group: ReplicateGroup, noise: SeedNoise | None) -> str:
    if noise is None:
        return "one run: there is nothing to compare it with"
    return (
        f"one setting, {len(group.values)} seeds: the noise between seeds is {noise.sd:.2g} "
        f"({degrees(noise.df)}); a difference from another setting must be compared with this noise"
    )


def _no_seeds(ranked: Sequence[ReplicateGroup]) -> str:
    first, second = ranked[:2]
    return (
        f"cannot tell {first.label} from {second.label}: {first.label} is better by "
        f"{abs(first.mean - second.mean):.2g}, but with one seed each the noise between seeds is unknown; "
        "run each setting with several seeds: seed=1,2,3,4,5"
    )


def _remarks(ranked: Sequence[ReplicateGroup], comparisons: Sequence[GroupComparison]) -> list[str]:
    tests = dict.fromkeys(comparison.difference.test for comparison in comparisons)
    pairs = len(ranked) * (len(ranked) - 1) // 2
    line = f"± is a 95% confidence interval; p is from {' and '.join(tests)}, two-sided"
    if pairs > 1:
        kind = "Holm" if len(ranked) <= MAX_HOLM_GROUPS else "Bonferroni"
        line += f", corrected for all {pairs:,} pairs ({kind}) because the best was chosen by the same values"
    if any(WOULD_DETECT in comparison.sentence for comparison in comparisons[:SENTENCES]):
        line += "; the numbers of seeds are for a power of 80%"
    remarks = [line]
    single = sum(len(group.values) == 1 for group in ranked)
    if single:
        remarks.insert(
            0,
            f"{single} of {len(ranked)} settings {'has' if single == 1 else 'have'} only one seed: "
            f"{'its' if single == 1 else 'their'} noise is assumed to equal that of the other settings, "
            "which these runs cannot show",
        )
    return remarks


def plus_minus(value: float, half_width: float, *, least_digits: int = 1) -> str:
    """Return a text such as `0.021 ± 0.006`, rounded to the precision of the interval.

    At least `least_digits` significant digits of the value are kept.
    """
    if not half_width or not math.isfinite(half_width):
        return f"{value:.4g}"
    first = half_width * 10.0 ** (digits := max(0, -math.floor(math.log10(half_width))))
    digits += first < 4  # 0.012, but 0.06
    if value:
        digits = max(digits, least_digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{digits}f} ± {half_width:.{digits}f}"


def p_in_table(p: float) -> str:
    """Return a p-value as `0.012` or `<0.0001`."""
    return f"{p:.2g}" if p >= LEAST_P else f"<{LEAST_P}"


def p_in_words(p: float) -> str:
    """Return a p-value as `p = 0.012` or `p < 0.0001`."""
    return f"p = {p:.2g}" if p >= LEAST_P else f"p < {LEAST_P}"


def _seeds(a: ReplicateGroup, b: ReplicateGroup) -> str:
    counts = len(a.values), len(b.values)
    if counts[0] == counts[1]:
        return f"{counts[0]} seeds each" if counts[0] > 1 else "one seed each"
    return f"{counts[0]} and {counts[1]} seeds"


def degrees(df: int) -> str:
    return f"{counted(df, 'degree')} of freedom"
