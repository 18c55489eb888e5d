"""Draws conclusions from groups of replicates, as numbers and as plain sentences."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lmtrain.comparison.statistics.effects import SettingEffects, effects
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.differences import Differences
from lmtrain.comparison.statistics.noise.model import fit_noise
from lmtrain.comparison.statistics.noise.survivors import mean_rank_is_better, rank_test
from lmtrain.comparison.statistics.noise.verdict import GroupComparison, Method, Verdict
from lmtrain.comparison.statistics.noise.winner import mean_on_new_seeds
from lmtrain.comparison.statistics.significance import ALPHA, MeanDifference, SeedNoise, pooled_noise
from lmtrain.comparison.statistics.wording import verdicts as say

SENTENCES = 3  # pairs in words; --json has all
MOSTLY = 0.5  # a setting of which at least this share diverged is ranked after those of which less did


@dataclass(frozen=True)
class Conclusions:
    """The results of the statistics.

    Attributes:
        groups: The groups from best to worst. Those without values, because all runs diverged, come last.
        noise: The noise between seeds of one setting, pooled over the settings.
        comparisons: Of the reference with each other group, in the order of the groups.
        effects: The effect of each setting, if several differ.
        sentences: The results in words; the first is the headline.
        method: How the verdicts were found; None without verdicts.
        among: The groups that contain the best one with a confidence of 95%.
        on_new_seeds: The mean to expect from the best group on new seeds: its mean without the luck of having been
            picked as the best. NaN if there is no noise to compare with.
        baseline: The group that all others are compared with; None means the best one.
        margin: The difference that is too small to matter, if one was given.
    """

    groups: Sequence[ReplicateGroup]
    noise: SeedNoise | None
    comparisons: Sequence[GroupComparison]
    effects: SettingEffects
    sentences: Sequence[str]
    method: Method | None = None
    among: Sequence[ReplicateGroup] = ()
    on_new_seeds: float = math.nan
    baseline: ReplicateGroup | None = None
    margin: float | None = None


def conclude(
    groups: Sequence[ReplicateGroup],
    *,
    sign: int = 1,
    refused: Sequence[str] = (),
    baseline: ReplicateGroup | None = None,
    margin: float | None = None,
) -> Conclusions:
    """Compare groups of replicates.

    Args:
        groups: The groups, in any order. Those of which all runs diverged have no values.
        sign: 1 if lower values are better, −1 if higher values are.
        refused: Why these groups allow no verdict, such as losses on different data; empty if they do.
        baseline: The group of `groups` to compare all others with; None means the best one.
        margin: A difference that is too small to matter; with it, groups may also be found to be the same.
    """
    groups = [group for group in groups if group.values or group.diverged]
    baseline = next((group for group in groups if group is baseline), None)
    if not any(group.values for group in groups):
        return Conclusions(groups, None, [], SettingEffects(), [say.nothing(groups)])
    judge = _Judge(groups, sign, baseline, margin)
    ranked = judge.ranked
    valued = [group for group in ranked if group.values]
    noise = pooled_noise([group.sample for group in valued])
    if len(ranked) == 1:
        return Conclusions(ranked, noise, [], SettingEffects(), [say.one_group(ranked[0], noise)])
    if refused:
        return Conclusions(ranked, noise, [], SettingEffects(), [f"no verdict: {reason}" for reason in refused])
    found = effects(groups, sign=sign)
    if noise is None and all(group.values for group in ranked):
        return Conclusions(ranked, None, [], found, [say.no_seeds(ranked)])
    if noise is not None and noise.sd == 0:
        return Conclusions(ranked, noise, [], found, [say.seeds_change_nothing(valued)])
    comparisons = judge.comparisons()
    method = judge.method()
    among = [judge.reference, *(one.other for one in comparisons if one.verdict != "better")] if not baseline else []
    on_new_seeds = judge.on_new_seeds()
    sentences = [
        *say.headline(judge.reference, comparisons, among, baseline),
        *(one.sentence for one in comparisons[:SENTENCES]),
        *say.luck(ranked[0], judge.means.get(id(ranked[0]), math.nan), on_new_seeds, judge.model),
        *say.remarks(ranked, comparisons, method),
    ]
    return Conclusions(ranked, noise, comparisons, found, sentences, method, among, on_new_seeds, baseline, margin)


class _Judge:
    """Compares the reference with each other group."""

    def __init__(
        self, groups: Sequence[ReplicateGroup], sign: int, baseline: ReplicateGroup | None, margin: float | None
    ) -> None:
        self.sign, self.baseline, self.margin = sign, baseline, margin
        valued = [group for group in groups if group.values]
        self.model = fit_noise(valued)
        means = [group.mean for group in valued] if self.model is None else self.model.means.tolist()
        self.means = {id(group): mean for group, mean in zip(valued, means, strict=True)}
        self.ranked = sorted(groups, key=self._place)
        self.place = {id(group): place for place, group in enumerate(valued)}
        self.reference = self.ranked[0] if baseline is None else baseline
        self.differences = None
        if self.model is not None and len(valued) > 1:
            self.differences = Differences(
                self.model, baseline=None if baseline is None else self.place.get(id(baseline))
            )
        k = len(groups)
        self.pairs = k - 1 if baseline else k * (k - 1) // 2

    def _place(self, group: ReplicateGroup) -> tuple[bool, bool, float]:
        total = len(group.values) + len(group.diverged)
        mostly = bool(group.diverged) and len(group.diverged) >= MOSTLY * total
        return not group.values, mostly, self.sign * self.means.get(id(group), math.inf)

    def method(self) -> Method | None:
        if self.model is None or self.differences is None:
            return None
        correction = None
        if self.differences.k > 2:
            correction = f"all {self.pairs:,} pairs" if self.baseline is None else f"all {self.pairs:,} comparisons"
        model = self.model
        return Method(self.differences.test, correction, ALPHA, model.sd, model.df, model.paired, model.correlation)

    def on_new_seeds(self) -> float:
        """Return the mean to expect from the first group on new seeds.

        NaN if it was not picked, has lost runs (then only its survivors were), or is equal to another one to the bit.
        """
        first = self.ranked[0]
        if self.model is None or first.missing_share or any(_are_equal(first, other) for other in self.ranked[1:]):
            return math.nan
        best, mean = mean_on_new_seeds(self.model, self.sign)
        return mean if best == self.place[id(first)] else math.nan

    def comparisons(self) -> list[GroupComparison]:
        return [self._compare(other) for other in self.ranked if other is not self.reference]

    def _compare(self, other: ReplicateGroup) -> GroupComparison:
        first = self.reference
        difference, p = MeanDifference(math.nan, math.nan, math.nan, "rank test"), math.nan
        p_same = p_no_worse = math.nan
        two_tests = bool(first.diverged or other.diverged)  # of the survivors' means, and of all ranks
        if self.differences is not None and first.values and other.values:
            a, b = self.place[id(first)], self.place[id(other)]
            difference, p = self.differences.between(a, b, ALPHA / 2 if two_tests else ALPHA)
            if self.margin is not None:
                p_same, p_no_worse = self._within_margin(a, b)
        by_mean, by_ranks = self.sign * difference.value < 0, False
        reference_is_better = by_mean
        if two_tests:
            p_ranks = rank_test(first, other, self.sign) * self.pairs
            by_ranks = not p < p_ranks  # also if p is NaN
            p = min(1.0, p_ranks if math.isnan(p) else 2 * min(p, p_ranks))
            reference_is_better = mean_rank_is_better(first, other, self.sign) if by_ranks else by_mean
        winner, loser = (first, other) if reference_is_better else (other, first)
        verdict: Verdict
        if math.isnan(p) or (p < ALPHA and winner.missing_share > loser.missing_share):
            verdict = "none"
        elif p >= ALPHA:
            verdict = "undecided"
        else:
            verdict = "better" if reference_is_better else "worse"
        if first.missing_share != other.missing_share:
            p_same = math.nan
            p_no_worse = p_no_worse if other.missing_share <= first.missing_share else math.nan
        if verdict == "undecided" and _are_equal(first, other):
            sentence = say.settings_change_nothing(first, other)
        else:
            sentence = say.pair(winner, loser, difference, p, verdict, by_ranks=by_ranks)
        found = GroupComparison(other, difference, p, sentence, verdict, by_ranks, p_same, p_no_worse)
        if self.margin is None:
            return found
        addition = say.within_margin(first, found, self.margin, baseline=self.baseline is not None)
        return GroupComparison(other, difference, p, sentence + addition, verdict, by_ranks, p_same, p_no_worse)

    def _within_margin(self, a: int, b: int) -> tuple[float, float]:
        """Return the p-values of two one-sided tests together, and of the one that `b` is no worse than `a`."""
        assert self.differences is not None
        assert self.margin is not None
        below = self.differences.p_beyond(a, b, self.margin)
        above = self.differences.p_beyond(b, a, self.margin)
        return max(below, above), above if self.sign > 0 else below


def _are_equal(a: ReplicateGroup, b: ReplicateGroup) -> bool:
    """Return whether two groups have equal values, to the bit, with each of several seeds."""
    return len(a.values) > 1 and a.values == b.values and not (a.diverged or b.diverged)
