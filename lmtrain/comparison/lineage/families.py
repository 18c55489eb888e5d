"""Finds families: a trunk, whose schedule has no end, and its branches, which are forks that bring the rate down.

A trunk is no fair competitor of its branches, because a decay lowers the loss. Runs whose schedules have ended are
compared with those that end after as many tokens.

Source: Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations" (2024), section 4.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.errors import COMPLETED
from lmtrain.files.numbers import as_float
from lmtrain.terminal.units import si

SCHEDULE = "scheduler._target_"
WITHOUT_END = frozenset({"lmtrain.scheduler.constant", "lmtrain.scheduler.power"})
WITH_END = frozenset({"lmtrain.scheduler.cosine", "lmtrain.scheduler.linear"})
WSD = "lmtrain.scheduler.wsd"
BRANCH_KEYS = ("scheduler.", "trainer.max_steps")  # what a branch changes of its trunk
ENDLESS = -1.0  # stands for the end of a schedule that has none


@dataclass(frozen=True)
class Family:
    """A trunk and its branches.

    Attributes:
        trunk: Identifies the trunk, as in `Branch.trunk`.
        trunks: The trunk and the forks that continue it without a decay, as far as they are among the runs.
        branches: The branches, by the step at which they left the trunk.
    """

    trunk: str
    trunks: Sequence[ComparedRun]
    branches: Sequence[ComparedRun]

    @property
    def members(self) -> list[ComparedRun]:
        return [*self.trunks, *self.branches]


def goes_on(setting: Mapping[str, Any]) -> bool:
    """Return whether a schedule does not depend on the length of the run, and so never ends."""
    target = str(setting.get(SCHEDULE))  # a stranger's config may have a list there
    return target in WITHOUT_END or (target == WSD and setting.get("scheduler.decay_steps") == 0)


def comes_to_an_end(setting: Mapping[str, Any]) -> bool:
    """Return whether a schedule brings the learning rate down by the end of the run."""
    target = str(setting.get(SCHEDULE))  # a stranger's config may have a list there
    return target in WITH_END or (target == WSD and as_float(setting.get("scheduler.decay_steps")) > 0)


def is_branch(run: ComparedRun) -> bool:
    """Return whether a run is a branch of a family: a fork with a decay of a run without one."""
    return run.branch is not None and comes_to_an_end(run.config) and goes_on(run.branch.parent_setting)


def differs_in_schedule_alone(run: ComparedRun) -> bool:
    """Return whether a branch has all settings of its trunk but those of the schedule, so that they name the trunk."""
    if run.branch is None or not is_branch(run):
        return False
    own, parent = run.setting, run.branch.parent_setting
    differing = [key for key in {*own, *parent} if own.get(key) != parent.get(key)]
    return all(key.startswith(BRANCH_KEYS) for key in differing)


def families(runs: Sequence[ComparedRun]) -> list[Family]:
    """Return the families among the runs, in the order of their first runs."""
    branched = {run.branch.trunk for run in runs if run.branch is not None and is_branch(run)}
    members: dict[str, list[ComparedRun]] = {}
    for run in runs:
        if (trunk := _trunk_of(run)) in branched and (is_branch(run) or goes_on(run.config)):
            members.setdefault(trunk, []).append(run)
    return [
        Family(
            trunk,
            [run for run in own if not is_branch(run)],
            sorted(filter(is_branch, own), key=lambda run: (branch_step(run), run.steps)),
        )
        for trunk, own in members.items()
    ]


def branch_step(run: ComparedRun) -> float:
    """Return the step at which a branch left its trunk; NaN for other runs and where it is unknown."""
    known = run.branch is not None and is_branch(run)
    return as_float(run.branch.step) if known and run.branch is not None else np.nan


def in_family_order(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs with each family in one place: that of its first run, the trunk before its branches."""
    family_of = {id(run): family for family in families(runs) for run in family.members}
    ordered: dict[int, ComparedRun] = {}
    for run in runs:
        for each in family_of[id(run)].members if id(run) in family_of else [run]:
            ordered.setdefault(id(each), each)
    return list(ordered.values())


def below_their_trunk(runs: Sequence[ComparedRun]) -> set[int]:
    """Return the places of the branches that follow their trunk, or its other branches, in this order of the runs."""
    family_of = {id(run): number for number, family in enumerate(families(runs)) for run in family.members}
    found: set[int] = set()
    for place in range(1, len(runs)):
        before, run = runs[place - 1], runs[place]
        same = id(run) in family_of and family_of[id(run)] == family_of.get(id(before))
        if same and is_branch(run) and (place - 1 in found or not is_branch(before)):
            found.add(place)
    return found


def by_ending(runs: Sequence[ComparedRun], groups: Sequence[int], metric: str) -> list[tuple[str, list[ComparedRun]]]:
    """Return classes of runs that are fair competitors, each with a title: by the end of their schedules, last first.

    Runs without an end, such as trunks, are a class of their own, the last one.

    Args:
        runs: The runs, with at least one family among them.
        groups: For each run the number of its group of replicates, which stays together.
        metric: The metric that is compared.
    """
    ends: dict[int, tuple[float, float]] = {}
    for run, group in sorted(zip(runs, groups, strict=True), key=lambda pair: pair[0].status != COMPLETED.status):
        ends.setdefault(group, _end_of(run, metric))
    classes: dict[float, list[ComparedRun]] = {}
    steps: dict[float, set[float]] = {}
    for run, group in zip(runs, groups, strict=True):
        step, tokens = ends[group]
        end = ENDLESS if goes_on(run.config) else tokens
        classes.setdefault(end, []).append(run)
        steps.setdefault(end, set()).add(step)
    return [(_title(end, steps[end]), classes[end]) for end in sorted(classes, reverse=True)]


def joined_to_trunks(runs: Sequence[ComparedRun]) -> list[ComparedRun]:
    """Return the runs, with each branch beginning in the line of its trunk where it left, so that the curves join."""
    trunks_of = {id(branch): family.trunks for family in families(runs) for branch in family.branches}
    return [_joined(run, trunks_of.get(id(run), ())) for run in runs]


def _joined(run: ComparedRun, trunks: Sequence[ComparedRun]) -> ComparedRun:
    step = branch_step(run)
    for trunk in trunks:
        rows = np.flatnonzero(trunk.metrics["step"] == step)
        if len(rows) and not (run.metrics["step"] <= step).any():
            first = {name: trunk.metrics[name][rows[-1]] if name in trunk.metrics else np.nan for name in run.metrics}
            return replace(run, metrics={name: np.append(first[name], own) for name, own in run.metrics.items()})
    return run


def _trunk_of(run: ComparedRun) -> str:
    if run.branch is not None:
        return run.branch.trunk
    run_id = run.environment.get("run_id")
    return str(run_id) if run_id else os.path.realpath(run.path)


def _end_of(run: ComparedRun, metric: str) -> tuple[float, float]:
    """Return steps and tokens at the end of a run; of one that has not completed, those that it would have there."""
    steps, _ = run.series(metric if run.status == COMPLETED.status else "tokens")
    tokens, _ = run.series(metric if run.status == COMPLETED.status else "tokens", "tokens")
    planned = as_float(run.config.get("trainer.max_steps"))
    if not (len(steps) and len(tokens) and steps[-1] > 0):
        return planned, 0.0
    if run.status == COMPLETED.status or not planned > 0:
        return float(steps[-1]), float(tokens[-1])
    return planned, float(np.round(float(tokens[-1]) / float(steps[-1]) * planned))


def _title(end: float, steps: set[float]) -> str:
    if end == ENDLESS:
        return "without a decay"
    at = f"step {next(iter(steps)):.0f}, " if len(steps) == 1 else ""
    return f"decayed by {at}{si(end)} tokens"
