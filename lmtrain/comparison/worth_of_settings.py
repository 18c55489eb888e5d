"""Says what the better of two settings saves, from the curves of the runs."""

from collections.abc import Mapping
from dataclasses import dataclass

from lmtrain.comparison.run_comparison import RunComparison
from lmtrain.comparison.statistics.conclusions import SENTENCES
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.worth import READ_FROM_CURVES, Saving, in_words, mean_curve, savings


@dataclass(frozen=True)
class Worth:
    """What one setting saves compared with another one, by axis; `decided` if it is better by the verdict on means."""

    better: ReplicateGroup
    worse: ReplicateGroup
    savings: Mapping[str, Saving]
    decided: bool

    @property
    def sentence(self) -> str:
        return in_words(self.better.label, self.worse.label, self.savings)


def worth_of_settings(comparison: RunComparison) -> list[Worth]:
    """Return what the better of two settings saves, for the best one or the baseline and each other one.

    If the best values are compared, there is nothing to read from a curve, because they are from different steps. Time
    is left out if the runs of the two settings are from different machines.
    """
    groups = comparison.conclusions.groups
    if comparison.value_kind == "best" or not groups:
        return []
    place = None if comparison.value_kind == "final" else comparison.places[comparison.axis].place
    by_label = {run.label: run for run in comparison.runs}
    members = {id(group): [by_label[label] for label in group.runs] for group in groups}
    metric, axis, better_is = comparison.metric, comparison.axis, comparison.better
    curves = {
        key: mean_curve([run.metrics for run in own], metric, axis, place, better_is) for key, own in members.items()
    }
    reference = comparison.conclusions.baseline or groups[0]
    found = []
    for pair in comparison.conclusions.comparisons:
        reference_is_ahead = better_is * pair.difference.value <= 0
        better, worse = (reference, pair.other) if reference_is_ahead else (pair.other, reference)
        curve, other_curve = curves.get(id(better)), curves.get(id(worse))
        if curve is None or other_curve is None:
            continue
        difference, half = abs(pair.difference.value), pair.difference.half_width
        saved = savings(curve, other_curve, difference - half, difference, difference + half)
        both = [*members[id(better)], *members[id(worse)]]
        one_machine = len({str(run.environment.get("host")) for run in both}) == 1
        kept = {axis: saving for axis, saving in saved.items() if axis != "seconds" or one_machine}
        if kept:
            decided = pair.verdict == ("better" if reference_is_ahead else "worse") and not pair.by_ranks
            found.append(Worth(better, worse, kept, decided))
    return found


def worth_in_words(comparison: RunComparison) -> list[str]:
    """Return a sentence for each of the first pairs of which one is better, and what such a saving means."""
    decided = [text for worth in worth_of_settings(comparison) if worth.decided and (text := worth.sentence)]
    return [*decided[:SENTENCES], READ_FROM_CURVES] if decided else []
