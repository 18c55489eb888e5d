"""Says for each run which part it has in the statistics, so that pictures average the same runs as verdicts."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lmtrain.compare.compared_run import ComparedRun
from lmtrain.compare.forks import unit_of
from lmtrain.compare.statistics.replicates import group_labels, group_numbers, outcomes_of


@dataclass(frozen=True)
class Member:
    """The part of a run in the statistics.

    Attributes:
        group: The number of its group of replicates.
        label: The label of the group.
        unit: The number of its unit in the group: runs of one unit, such as the forks of one run, count as one value.
        value: The value of the run; NaN if it does not count.
    """

    group: int
    label: str
    unit: int
    value: float

    @property
    def counts(self) -> bool:
        """Return whether the run is part of the mean of its group."""
        return math.isfinite(self.value)


def members(runs: Sequence[ComparedRun], value: Callable[[ComparedRun], float], *, timed: bool = False) -> list[Member]:
    """Return the part of each run in the groups that `replicate_groups` makes."""
    groups: dict[int, list[int]] = {}
    for place, number in enumerate(group_numbers(runs, timed=timed)):
        groups.setdefault(number, []).append(place)
    counted = [outcomes_of([runs[place] for place in places], value).values for places in groups.values()]
    labels = group_labels([runs[places[0]] for places in groups.values()], list(map(bool, counted)), timed=timed)
    found: dict[int, Member] = {}
    for (number, places), label, values in zip(groups.items(), labels, counted, strict=True):
        units: dict[object, int] = {}
        for place in places:
            unit = unit_of(runs[place])
            own = value(runs[place]) if unit in values else math.nan
            found[place] = Member(number, label, units.setdefault(unit, len(units)), own)
    return [found[place] for place in range(len(runs))]
