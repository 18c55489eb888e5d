"""Says in words what the settings are worth when one looks again after more seeds."""

import math
from collections.abc import Sequence
from dataclasses import replace

from lmtrain.comparison.looking.race import Pair, Race, race
from lmtrain.comparison.statistics.conclusions import Conclusions
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.verdict import GroupComparison, Verdict
from lmtrain.comparison.statistics.significance import MeanDifference
from lmtrain.comparison.statistics.wording.numbers import plus_minus
from lmtrain.terminal.as_text import first_few
from lmtrain.terminal.units import counted

TEST = "anytime-valid t-test of pairs"
NAMED = 3
MUCH = 1e6  # more evidence is not shown in digits


def looking_again(conclusions: Conclusions, sign: int) -> tuple[Conclusions, Race]:
    """Return conclusions with the verdicts of a test that holds after any number of looks, and the verdicts."""
    groups = conclusions.groups
    found = race(groups, sign=sign)
    if len(groups) < 2:
        return conclusions, found
    reference = groups.index(conclusions.baseline) if conclusions.baseline is not None else 0
    comparisons = []
    for place, other in enumerate(groups):
        pair = found.pairs[min(reference, place), max(reference, place)] if place != reference else None
        if pair is None or not pair.seeds:
            continue
        is_worse = pair.worse is groups[reference]
        value = sign * pair.difference * (1 if is_worse else -1)
        difference = MeanDifference(value, pair.half_width, min(1.0, math.exp(-pair.log_evidence)), TEST)
        verdict: Verdict = "undecided" if not pair.is_decided else "worse" if is_worse else "better"
        comparisons.append(GroupComparison(other, difference, pair.p, _pair_sentence(pair), verdict))
    same = _the_same(found, conclusions.margin)
    if same:
        found = replace(found, more=[])
    sentences = [*same, *_sentences(found, groups), _method(groups)]
    return replace(
        conclusions,
        comparisons=comparisons,
        sentences=sentences,
        method=None,
        among=(),
        on_new_seeds=math.nan,
    ), found


def _the_same(found: Race, margin: float | None) -> list[str]:
    """Return a sentence if all settings that are left differ by less than the margin; empty otherwise."""
    among = {id(group) for group in found.more}
    pairs = [pair for pair in found.pairs.values() if id(pair.better) in among and id(pair.worse) in among]
    if margin is None or not pairs or any(pair.difference + pair.half_width >= margin for pair in pairs):
        return []
    labels = first_few([group.label for group in found.more], 2 * NAMED)
    most = max(pairs, key=lambda pair: pair.difference + pair.half_width)
    by = plus_minus(most.difference, most.half_width)
    return [
        f"the same within {margin:g}: {labels} differ by {by} at most, so keep any of them; no more seeds are needed"
    ]


def _sentences(found: Race, groups: Sequence[ReplicateGroup]) -> list[str]:
    without = [group.label for group in groups if not group.values]
    groups = [group for group in groups if group.values]
    return _verdicts(found, groups) + [f"no verdict on {label}: none of its runs has a value" for label in without]


def _verdicts(found: Race, groups: Sequence[ReplicateGroup]) -> list[str]:
    if found.keep is not None and len(groups) == 2:
        return [f"keep {found.keep.label}, drop {found.dropped[0].worse.label}: {_by(found.dropped[0])}"]
    sentences = []
    if found.keep is not None:
        sentences.append(f"keep {found.keep.label}: the {len(groups) - 1} other settings are dropped")
    elif found.more:
        sentences += _more(found)
    most = sorted(found.dropped, key=lambda pair: -pair.log_evidence)
    sentences += [f"drop {pair.worse.label}: {pair.better.label} {_by(pair, named=False)}" for pair in most[:NAMED]]
    if most[NAMED:]:
        sentences.append(f"drop {counted(len(most) - NAMED, 'other setting')} as well: --json has them all")
    return sentences


def _more(found: Race) -> list[str]:
    among = {id(group) for group in found.more}
    open_pairs = [pair for pair in found.pairs.values() if id(pair.better) in among and id(pair.worse) in among]
    labels = first_few([group.label for group in found.more], 2 * NAMED)
    survivors = [pair for pair in open_pairs if pair.survivors and pair.difference > pair.half_width]
    if survivors:
        pair = survivors[0]
        return [
            f"cannot tell {pair.better.label} from {pair.worse.label}: more seeds of {pair.better.label} have no value "
            f"(it diverged, failed or was stopped), so that it may only look better; {_by(pair)}"
        ]
    best = max(found.more, key=lambda group: sum(pair.better is group for pair in open_pairs))
    of_best = [pair for pair in open_pairs if pair.seeds and (pair.better is best or pair.worse is best)]
    nearest = min(of_best, key=lambda pair: pair.log_evidence, default=None)
    if nearest is None:
        return [f"{labels}: no seed in common; verdicts are from pairs of equal seeds, so give them the same seeds"]
    return [f"one more seed each for {labels}: {_pair_words(nearest, names=len(found.more) > 2)}"]


def _pair_words(pair: Pair, *, names: bool) -> str:
    ahead = f"{pair.better.label} is ahead of {pair.worse.label}" if names else f"{pair.better.label} is ahead"
    interval = f" by {plus_minus(pair.difference, pair.half_width)}" if math.isfinite(pair.half_width) else ""
    return f"{ahead}{interval}, and the evidence is {_evidence(pair)} ({counted(pair.seeds, 'common seed')})"


def _pair_sentence(pair: Pair) -> str:
    if pair.is_decided:
        return f"drop {pair.worse.label}: {pair.better.label} {_by(pair, named=False)}"
    return f"one more seed each for {pair.better.label} and {pair.worse.label}: {_pair_words(pair, names=False)}"


def _by(pair: Pair, *, named: bool = True) -> str:
    name = f"{pair.better.label} " if named else ""
    by = plus_minus(pair.difference, pair.half_width)
    return f"{name}is better by {by} (the evidence is {_evidence(pair)}; {counted(pair.seeds, 'common seed')})"


def _evidence(pair: Pair) -> str:
    """Return, for example, `7.1 of the 20 that are needed` or, for a decided pair, `85, where 20 is enough`."""
    evidence = math.exp(min(pair.log_evidence, 2 * math.log(MUCH)))
    shown = f"over {MUCH:,.0f}" if evidence > MUCH else f"{evidence:,.0f}" if evidence >= 10 else f"{evidence:.2g}"
    needed = f"{pair.needed:,.0f}"
    return (
        f"{shown}, where {needed} is enough" if evidence >= pair.needed else f"{shown} of the {needed} that are needed"
    )


def _method(groups: Sequence[ReplicateGroup]) -> str:
    pairs = len(groups) * (len(groups) - 1) // 2
    corrected = f", for all {pairs:,} pairs at once (Bonferroni)" if pairs > 1 else ""
    return (
        "± is a 95% interval that holds after any number of looks; p and the verdicts too: they are from an "
        f"anytime-valid t-test on the differences between equal seeds{corrected}"
    )
