"""Defines a run as `compare` sees it: the contents of its files, its effective setting, and where it branched off."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.files.numbers import as_float

AXES = ("step", "tokens", "flops", "seconds")


@dataclass(frozen=True)
class Branch:
    """Where a fork left other runs.

    The trunk is the run at which its line of parents begins. All forks of a trunk share its first steps.

    Attributes:
        trunk: Identifies the trunk: its `run_id` or, if that is unknown, its path.
        unit: The seed of the trunk. If that is unknown: the seed of its forks if they have only one, otherwise `trunk`.
        shared_steps: The number of steps of the trunk that the fork contains.
        step: The step at which the fork left its parent; None if unknown.
        parent_setting: The effective setting of the parent up to that step; empty if unknown.
        parent_name: The parent's path or run id, in case nothing else is known about it.
        trunk_setting: The effective setting of the trunk; empty if unknown.
        key: A text that is equal for forks which left runs of one setting at one step.
    """

    trunk: str
    unit: Any
    shared_steps: int | None
    step: int | None
    parent_setting: Mapping[str, Any]
    parent_name: str
    trunk_setting: Mapping[str, Any]
    key: str


@dataclass(frozen=True)
class ComparedRun:
    """A run, loaded from the files in its folder.

    Attributes:
        path: The run directory.
        label: A short name that is unique among the loaded runs.
        config: The resolved config, flat, with dotted keys.
        status: The status in `result.json`; without that file `running` or `unfinished`.
        result: The content of `result.json`; empty if the run has none.
        environment: The content of `environment.json`; empty if the run has none.
        metrics: An array per metric, all of the same length, with NaN where a line does not have the metric. It always
            has `step`, `tokens`, `seconds` and `flops`.
        sample: The text in `sample.txt`.
        parent: In words, the run that this one was forked from or repeats; None if there is none.
        setting: The effective setting, see `settings.py`.
        branch: Where a fork left its parents; None for other runs.
    """

    path: Path
    label: str
    config: Mapping[str, Any]
    status: str
    result: Mapping[str, Any]
    environment: Mapping[str, Any]
    metrics: Mapping[str, np.ndarray]
    sample: str | None
    parent: str | None
    setting: Mapping[str, Any] = field(default_factory=dict)
    branch: Branch | None = None

    def series(self, metric: str, x: str = "step") -> tuple[np.ndarray, np.ndarray]:
        """Return the finite points (x, y) of a metric over one of `AXES`; empty if it was never logged."""
        if metric not in self.metrics or x not in self.metrics:
            return np.empty(0), np.empty(0)
        xs, ys = self.metrics[x], self.metrics[metric]
        finite = np.isfinite(xs) & np.isfinite(ys)
        return xs[finite], ys[finite]

    def last(self, metric: str) -> float:
        """Return the value in the last line of the metrics; NaN if there are no lines."""
        column = self.metrics[metric]
        return float(column[-1]) if len(column) else float("nan")

    def value_of(self, key: str) -> Any:
        """Return the value of a config key, or of a key that only the effective setting has."""
        return self.config[key] if key in self.config else self.setting.get(key)

    @property
    def seed(self) -> Any:
        return self.config.get("seed")

    @property
    def parameters(self) -> float:
        """Return the number of parameters of the model; NaN if the run did not record it."""
        return as_float(mapping_at(self.environment, "model").get("parameters"))

    @property
    def flops_per_token(self) -> float:
        return as_float(mapping_at(self.environment, "model").get("flops_per_token"))

    @property
    def steps(self) -> int:
        """Return the number of optimizer steps done."""
        logged = int(self.metrics["step"][-1]) if len(self.metrics["step"]) else 0
        recorded = self.result.get("steps")  # more than were logged if the run diverged between two logged steps
        return max(logged, recorded) if type(recorded) is int else logged

    @property
    def bad_steps(self) -> int:
        """Return the number of bad steps; 0 if none was recorded."""
        recorded = self.result.get("bad_steps")
        if type(recorded) is int:
            return recorded
        logged = self.metrics.get("bad_steps", np.empty(0))
        return int(np.nanmax(logged)) if np.isfinite(logged).any() else 0


def forked_from(run: ComparedRun) -> Mapping[str, Any]:
    """Return `run`, `run_id` and `step` of the checkpoint that a forked run started from; empty for other runs."""
    if recorded := mapping_at(run.environment, "forked_from"):
        return recorded
    fork = run.config.get("fork")
    return {"run": fork, "step": run.config.get("step")} if isinstance(fork, str) else {}


def mapping_at(content: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    part = content.get(key)
    return part if isinstance(part, dict) else {}
