"""Defines a group of replicates: the values of one setting, one per seed."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class ReplicateGroup:
    """The replicates of one setting.

    Attributes:
        label: The setting in words.
        settings: The values of the config keys in which the groups differ.
        values: The value of each seed that has one. For forks, the seed is that of the trunk.
        start: Two groups with equal `start` begin with the same weights and see the same batches for equal seeds, so
            that the part of their values which the seed determines is the same.
        diverged: The seeds whose runs diverged: they have the worst rank.
        missing: The status of each seed that has no value for another reason, such as `pruned`, `unfinished` or
            `failed` (a crash says nothing about the loss).
        runs: The labels of the runs that the values are from.
    """

    label: str
    settings: Mapping[str, Any]
    values: Mapping[Any, float]
    start: Hashable = None
    diverged: tuple[Any, ...] = ()
    missing: Mapping[Any, str] = field(default_factory=dict)
    runs: tuple[str, ...] = ()

    @property
    def sample(self) -> list[float]:
        return list(self.values.values())

    @property
    def mean(self) -> float:
        """Return the mean of the values; NaN without values."""
        return float(np.mean(self.sample)) if self.values else float("nan")

    @property
    def missing_share(self) -> float:
        """Return the share of seeds without a value."""
        without = len(self.diverged) + len(self.missing)
        return without / (without + len(self.values)) if without else 0.0
