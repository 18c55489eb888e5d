"""Names families for pictures, which draw a trunk and its branches, and those of its replicates, in one colour."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmtrain.comparison.labels import canonical_json, labels_of
from lmtrain.comparison.lineage.families import Family
from lmtrain.comparison.lineage.forks import END_OF_RUN
from lmtrain.comparison.run_comparison import RunComparison
from lmtrain.comparison.runs import distinct_keys


@dataclass(frozen=True)
class FamilyNames:
    """The families of a comparison without regard to seeds.

    Attributes:
        names: The names of the families: the settings in which their trunks differ.
        number: For each run the number of its family; None for a run without one.
    """

    names: Sequence[str]
    number: Sequence[int | None]


def family_names(comparison: RunComparison) -> FamilyNames:
    """Return the families of a comparison; those whose trunks differ only in seed and length are one."""
    settings: dict[str, Mapping[str, Any]] = {}
    family_of: dict[int, str] = {}
    for family in comparison.families:
        setting = _trunk_setting(family)
        key = canonical_json(setting) if setting else family.trunk
        settings.setdefault(key, setting)
        family_of |= {id(run): key for run in family.members}
    numbers = {key: number for number, key in enumerate(settings)}
    known = list(settings.values())
    names = labels_of(known, distinct_keys(known))
    return FamilyNames(
        [name or "trunk" for name in names],
        [numbers[family_of[id(run)]] if id(run) in family_of else None for run in comparison.runs],
    )


def _trunk_setting(family: Family) -> Mapping[str, Any]:
    """Return the effective setting of the trunk without its seed and its length; empty if it is unknown."""
    own = [run.setting for run in family.trunks if run.branch is None]
    branches = [run.branch.trunk_setting for run in family.members if run.branch is not None]
    setting = next(iter([*own, *branches]), {})
    return {key: value for key, value in setting.items() if key not in (*END_OF_RUN, "scheduler.max_steps")}
