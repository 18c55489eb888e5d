"""Says in plain sentences what the comparison of settings has shown."""

import math
from collections.abc import Sequence

from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.differences import FEWEST_OWN
from lmtrain.comparison.statistics.noise.model import NoiseModel
from lmtrain.comparison.statistics.noise.survivors import diverged_words, without_value
from lmtrain.comparison.statistics.noise.verdict import GroupComparison, Method
from lmtrain.comparison.statistics.significance import ALPHA, MeanDifference, SeedNoise
from lmtrain.comparison.statistics.wording.numbers import degrees, listed, p_in_words, plus_minus
from lmtrain.terminal.units import counted

MOST_NAMED = 5
VISIBLE = 0.2  # standard errors; a correction below is not worth a sentence
TWO = 2  # seeds: too few to see that one setting is noisier than another


def nothing(groups: Sequence[ReplicateGroup]) -> str:
    if groups:
        return "all runs diverged: there is nothing to compare"
    return "no completed run has this value: there is nothing to compare"


def one_group(group: ReplicateGroup, noise: SeedNoise | None) -> str:
    if noise is None:
        return "one run: there is nothing to compare it with"
    if noise.sd == 0:
        return seeds_change_nothing([group])
    return (
        f"one setting, {len(group.values)} seeds: the noise between seeds is {noise.sd:.2g} "
        f"({degrees(noise.df)}); a difference from another setting must be compared with this noise"
    )


def no_seeds(ranked: Sequence[ReplicateGroup]) -> str:
    first, second = ranked[:2]
    return (
        f"cannot tell {first.label} and {second.label} apart: {first.label} is ahead by "
        f"{abs(first.mean - second.mean):.2g}, but with one seed each the noise between seeds is unknown; "
        "run each setting with several seeds: seed=1,2,3,4,5"
    )


def seeds_change_nothing(groups: Sequence[ReplicateGroup]) -> str:
    """Name a defect: the values of several seeds are equal to the bit."""
    same = [group for group in groups if len(group.values) > 1]
    names = listed([group.label for group in same], MOST_NAMED)
    have = "has" if len(same) == 1 else "each have"
    verdict = "no verdict: " if len(groups) > 1 else ""
    return f"{verdict}the seeds changed nothing: {names} {have} the same value with every seed; is the seed used?"


def settings_change_nothing(a: ReplicateGroup, b: ReplicateGroup) -> str:
    """Say that two settings have equal values, to the bit, with each seed."""
    return (
        f"{a.label} and {b.label} are equal: they have the same value with each of {counted(len(a.values), 'seed')}, "
        "to the last bit; does this setting change anything?"
    )


def pair(
    winner: ReplicateGroup,
    loser: ReplicateGroup,
    difference: MeanDifference,
    p: float,
    verdict: str,
    *,
    by_ranks: bool,
) -> str:
    """Return the verdict about two settings; `winner` is the one that is ahead."""
    by = plus_minus(abs(difference.value), difference.half_width)
    diverged = " and ".join(diverged_words(group) for group in (winner, loser) if group.diverged)
    if verdict == "none":
        if math.isnan(p):
            return f"no verdict on {winner.label} and {loser.label}: one seed each shows no noise"
        return (
            f"no verdict on {winner.label} and {loser.label}: {without_value(winner)}, so its other runs may be its "
            f"best ones; they are ahead by {by}"
        )
    if verdict == "undecided":
        if not math.isfinite(difference.value):
            why = f"{diverged}, but there are few runs ({p_in_words(p)})"
            return f"cannot tell {winner.label} and {loser.label} apart: {why}"
        of = " (survivors)" if diverged else ""
        text = f"they differ by {by}{of} ({p_in_words(p)}, {seeds(winner, loser)})"
        return f"cannot tell {winner.label} and {loser.label} apart: {text}" + (f"; {diverged}" if diverged else "")
    if by_ranks:
        survivors = f"; the survivors differ by {by}" if math.isfinite(difference.value) else ""
        return f"{winner.label} is better than {loser.label}: {diverged} ({p_in_words(p)}, by ranks){survivors}"
    return (
        f"{winner.label} is better than {loser.label} by {by}{_if_alike(winner, loser)} "
        f"({p_in_words(p)}, {seeds(winner, loser)})" + (f"; {diverged}" if diverged else "")
    )


def _if_alike(a: ReplicateGroup, b: ReplicateGroup) -> str:
    """Return the condition of a verdict about a single run."""
    single = [group.label for group in (a, b) if len(group.values) == 1]
    if not single:
        return ""
    each = "" if len(single) == 1 else " each"
    return f", if the noise of {' and '.join(single)} is that of the others, which one run{each} cannot show"


def within_margin(first: ReplicateGroup, found: GroupComparison, margin: float, *, baseline: bool) -> str:
    """Return what is known about a difference that would matter, to be added to the verdict."""
    decided = found.verdict in ("better", "worse")
    if found.p_same < ALPHA:
        but = "but " if decided else ""
        return f"; {but}they are the same within {margin:g} ({p_in_words(found.p_same)})"
    if baseline and found.verdict != "worse" and found.p_no_worse < ALPHA:
        return (
            f"; {found.other.label} is no worse than {first.label} within {margin:g} ({p_in_words(found.p_no_worse)})"
        )
    return "" if decided or found.verdict == "none" else f"; and they are not shown to be the same within {margin:g}"


def headline(
    reference: ReplicateGroup,
    comparisons: Sequence[GroupComparison],
    among: Sequence[ReplicateGroup],
    baseline: ReplicateGroup | None,
) -> list[str]:
    """Return the sentence about many settings at once; none for a single pair."""
    if len(comparisons) < 2:
        return []
    count = len(comparisons) + 1
    if baseline is not None:
        better = [one.other.label for one in comparisons if one.verdict == "worse"]
        worse = sum(one.verdict == "better" for one in comparisons)
        undecided = len(comparisons) - len(better) - worse
        names = listed(better, MOST_NAMED) if better else "none"
        return [
            f"better than {baseline.label}: {names}; {worse} of {len(comparisons)} settings are worse, and "
            f"{undecided} cannot be told from it"
        ]
    if len(among) == 1:
        return [f"the best of {count} settings is {reference.label}"]
    if len(among) == count:
        return [f"cannot tell which of the {count} settings is the best"]
    names = listed([group.label for group in among], MOST_NAMED)
    return [f"the best is among {names} (95% confidence); {_others(count - len(among))} not"]


def _others(number: int) -> str:
    return "the other setting is" if number == 1 else f"the {number} others are"


def luck(best: ReplicateGroup, mean: float, on_new_seeds: float, model: NoiseModel | None) -> list[str]:
    """Say what to expect from the best setting on new seeds, if that is visibly worse than its mean."""
    if model is None or not math.isfinite(on_new_seeds):
        return []
    error = model.sd / math.sqrt(len(best.values))
    if abs(on_new_seeds - mean) <= VISIBLE * error:  # also without any noise
        return []
    digits = max(0, 1 - math.floor(math.log10(error)))
    return [
        f"the mean of {best.label}, {mean:.{digits}f}, is partly luck, because it was picked as the best; on new "
        f"seeds, expect about {on_new_seeds:.{digits}f}"
    ]


def remarks(
    ranked: Sequence[ReplicateGroup],
    comparisons: Sequence[GroupComparison],
    method: Method | None,
) -> list[str]:
    """Return doubts about the runs, and last how the numbers were found."""
    found = []
    constant = [group for group in ranked if len(group.values) > 1 and len({*group.sample}) == 1]
    if constant:
        found.append(seeds_change_nothing(constant).removeprefix("no verdict: "))
    if method is None:
        return found
    several = [len(group.values) for group in ranked if len(group.values) > 1]
    if several and min(several) == TWO and (len(comparisons) > 1 or not method.paired):
        found.append(
            "two seeds do not show whether one setting is noisier than another; if so, more than 5% of such tables "
            'have a false "better"'
        )
    line = f"± is a 95% interval and p is from {_a(method.test)} ({degrees(method.df)})"
    if method.correction:
        line += f", both corrected for {method.correction}"
        if sorted(several)[-2:-1] >= [FEWEST_OWN]:
            line += ", or from the t-test of the pair alone, if that is less sure"
    if method.paired:
        line += f"; equal seeds are paired (correlation {method.correlation:.2f})"
        if len({frozenset(group.values) for group in ranked if group.values}) > 1:
            line += ", and differences are adjusted where a setting lacks a seed"
    if any(one.by_ranks for one in comparisons):
        line += "; where runs diverged, from a rank test that counts them as the worst"
    return [*found, line]


def _a(test: str) -> str:
    return test if test[0].isupper() else f"a {test}"


def seeds(a: ReplicateGroup, b: ReplicateGroup) -> str:
    counts = len(a.values), len(b.values)
    if counts[0] == counts[1]:
        return f"{counted(counts[0], 'seed')} each"
    return f"{counts[0]} and {counts[1]} seeds"
