"""Finds replicates (runs of one setting that differ only in the seed) and repeated runs (also of one seed)."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.labels import hashable, labels_of
from lmtrain.comparison.lineage.forks import unit_of
from lmtrain.comparison.notes import Note, names
from lmtrain.comparison.recorded_facts import resolved_system
from lmtrain.comparison.runs import distinct_keys, origin_texts
from lmtrain.comparison.settings import differing, timed_setting
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.errors import COMPLETED, DIVERGED, PRUNED, UNSUCCESSFUL
from lmtrain.files.metrics import MEASURED
from lmtrain.terminal.as_text import as_written, printable
from lmtrain.terminal.units import counted

ORIGIN_KEY = "from"  # a key of a group's settings, for the parent of forked runs
# What decides which weights and batches a seed gives.
START = re.compile(
    r"(model|data)(\..*)?|trainer\.(gradient_accumulation_steps|batch_schedule)|global_batch|parameters|code"
)
MAX_ERROR_CHARS = 200


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


def group_numbers(runs: Sequence[ComparedRun], *, timed: bool = False) -> list[int]:
    """Return for each run the number of its group: runs of one setting, which branched off at one place, share it.

    With `timed`, settings that change only the time of a run count as well.
    """
    settings = [timed_setting(run) if timed else run.setting for run in runs]
    keys = [key for key in differing(settings) if key != "seed"]
    numbers: dict[tuple[Any, ...], int] = {}
    return [
        numbers.setdefault((*(hashable(setting.get(key)) for key in keys), run.branch and run.branch.key), len(numbers))
        for run, setting in zip(runs, settings, strict=True)
    ]


def replicate_groups(
    runs: Sequence[ComparedRun], value: Callable[[ComparedRun], float], *, timed: bool = False
) -> tuple[list[ReplicateGroup], list[Note]]:
    """Return the groups in which a run has a value or diverged, in the order of their first runs, and notes.

    Args:
        runs: The runs.
        value: Returns the value of a run; NaN if it has none. A diverged run has none, whatever this returns.
        timed: Whether the values are times or depend on them, so that settings count which change only the time.
    """
    members: dict[int, list[ComparedRun]] = {}
    for run, number in zip(runs, group_numbers(runs, timed=timed), strict=True):
        members.setdefault(number, []).append(run)
    found = [(own, outcomes_of(own, value)) for own in members.values()]
    kept = [(own, outcomes) for own, outcomes in found if outcomes.values or outcomes.diverged]
    firsts = [own[0] for own, _ in kept]
    settings = [timed_setting(run) if timed else run.setting for run in firsts]
    keys = [key for key in distinct_keys(settings) if key != "seed"]
    origins = origin_texts(firsts)
    labels = group_labels(firsts, [bool(outcomes.values) for _, outcomes in kept], timed=timed)
    starts = _starts(firsts, settings)
    groups, notes = [], []
    for (own, outcomes), label, setting, origin, start in zip(kept, labels, settings, origins, starts, strict=True):
        named = {key: hashable(setting.get(key)) for key in keys} | (
            {ORIGIN_KEY: origin} if len(set(origins)) > 1 else {}
        )
        used = [run.label for run in own if unit_of(run) in outcomes.values and np.isfinite(value(run))]
        groups.append(replace(outcomes, label=label, settings=named, start=start, runs=tuple(used)))
        notes += _remarks(groups[-1], own)
    return groups, [*_left_out(runs, value), *notes]


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


def outcomes_of(runs: Sequence[ComparedRun], value: Callable[[ComparedRun], float]) -> ReplicateGroup:
    """Return a group with the values of its units, without a name.

    Runs of one unit are not independent, so they count as one value: their mean. A unit of which a fork diverged has
    diverged, and one of which a fork was pruned has no value, because the mean of the others would look too good. But a
    run that was repeated with its own seed has the value of the repetition.
    """
    by_unit: dict[Any, dict[Any, list[ComparedRun]]] = {}
    for run in runs:
        draws = by_unit.setdefault(unit_of(run), {})
        draws.setdefault((hashable(run.seed), run.branch and run.branch.trunk), []).append(run)
    values: dict[Any, float] = {}
    diverged: list[Any] = []
    missing: dict[Any, str] = {}
    for unit, draws in by_unit.items():
        numbers, statuses = [], []
        for same in draws.values():
            own = [number for run in same if run.status != DIVERGED.status and np.isfinite(number := value(run))]
            if own:
                numbers.append(float(np.mean(own)))
            else:
                statuses += [run.status for run in same]
        if DIVERGED.status in statuses:
            diverged.append(unit)
        elif numbers and PRUNED.status not in statuses:
            values[unit] = float(np.mean(numbers))
        else:
            missing[unit] = PRUNED.status if PRUNED.status in statuses else statuses[0]
    return ReplicateGroup("", {}, values, None, tuple(diverged), missing)


def group_labels(firsts: Sequence[ComparedRun], has_value: Sequence[bool], *, timed: bool = False) -> list[str]:
    """Return a label for each group, of which the first run is given.

    Groups with values are named by what differs among them, as far as that names them.
    """
    settings, origins = [timed_setting(run) if timed else run.setting for run in firsts], origin_texts(firsts)
    labels = labels_of(settings, [key for key in distinct_keys(settings) if key != "seed"])
    valued = [setting for setting, has in zip(settings, has_value, strict=True) if has]
    short = iter(labels_of(valued, [key for key in distinct_keys(valued) if key != "seed"]))
    labels = [(next(short) or label) if has else label for label, has in zip(labels, has_value, strict=True)]
    if len({*origins}) > 1:
        labels = [f"{label} {origin}".strip() for label, origin in zip(labels, origins, strict=True)]
    return [label or "all runs" for label in labels]


def _starts(runs: Sequence[ComparedRun], settings: Sequence[Mapping[str, Any]]) -> list[tuple[tuple[str, Any], ...]]:
    """Return, for each run, the settings that decide which weights and batches its unit begins with.

    For a fork, these are the settings of its trunk: whatever it changed, it shares the first steps.
    """
    begun = [
        setting if run.branch is None else run.branch.trunk_setting or {"model": run.branch.trunk}
        for run, setting in zip(runs, settings, strict=True)
    ]
    keys = [key for key in differing(begun) if START.fullmatch(key)]
    return [tuple((key, hashable(setting.get(key))) for key in keys) for setting in begun]


def _remarks(group: ReplicateGroup, runs: Sequence[ComparedRun]) -> list[Note]:
    """Return notes about a group: survivors, forks of one run, and `auto` that became different things."""
    notes = []
    if group.values and group.diverged:
        seeds = len(group.values) + len(group.diverged) + len(group.missing)
        text = (
            f"{group.label}: {len(group.diverged)} of {seeds} seeds diverged; the mean is over the others, so this "
            "setting looks better than it is"
        )
        notes.append(Note("diverged", text, [run.label for run in runs if run.status == DIVERGED.status]))
    with_value = [run for run in runs if unit_of(run) in group.values]
    forks = [run for run in with_value if run.branch is not None]
    if len(forks) > (trunks := len({unit_of(run) for run in forks})):
        steps = {run.branch.shared_steps for run in forks if run.branch is not None}
        first = f"its first {steps.pop()} steps" if len(steps) == 1 and None not in steps else "its first steps"
        count = (
            f"{len(forks)} forks of one run count as one: they"
            if trunks == 1
            else (f"{len(forks)} forks of {trunks} runs count as {trunks}: the forks of a run")
        )
        more = "for more values, train the parent with several seeds, and fork each"
        notes.append(Note("forks", f"{group.label}: {count} share {first}; {more}", [run.label for run in forks]))
    for name in ("device", "dtype", "compile"):
        became = Counter(resolved_system(run)[name] for run in with_value)
        del became[None]
        if len(became) > 1:
            words = " and ".join(f"{as_written(value)} ({counted(count, 'run')})" for value, count in became.items())
            text = f"{group.label}: system.{name} became {words}; the runs still count as one setting"
            notes.append(Note("system", text, [run.label for run in with_value]))
    return notes


def repeated_runs(runs: Sequence[ComparedRun]) -> list[Note]:
    """Return a note about runs of one setting and seed with equal metrics, and one about those with different ones."""
    same: dict[tuple[Any, ...], list[ComparedRun]] = {}
    for run, number in zip(runs, group_numbers(runs), strict=True):
        trunk = run.branch and (run.branch.trunk, unit_of(run))
        same.setdefault((number, hashable(run.seed), trunk), []).append(run)
    identical: list[list[ComparedRun]] = []
    different: list[list[ComparedRun]] = []
    for own in same.values():
        if len(own) > 1:
            (different if any(_first_difference(own[0], run) for run in own[1:]) else identical).append(own)
    return [_note_on_repeats(sets) for sets in (identical, different) if sets]


def _note_on_repeats(sets: Sequence[Sequence[ComparedRun]]) -> Note:
    text = _describe_repeats(sets[0])
    if others := [own[0] for own in sets[1:]]:
        text += f"; the same holds for {counted(len(others), 'more repeated run')}: {names(others)}"
    return Note("repeated", text, [run.label for own in sets for run in own])


def _describe_repeats(runs: Sequence[ComparedRun]) -> str:
    first = runs[0]
    verdicts = [_first_difference(first, run) for run in runs[1:]]
    verdict = next(filter(None, verdicts), "bit-identical at every step that they share")
    hashes = {str(run.result["config_hash"]) for run in runs if "config_hash" in run.result}
    shown_hash = f" (hash {hashes.pop()})" if len(hashes) == 1 else ""
    return f"the same setting and seed{shown_hash}: {names(runs)}; {verdict}"


def _first_difference(a: ComparedRun, b: ComparedRun) -> str:
    """Return, in words, the first step at which two runs differ; empty if they are equal."""
    steps, rows_a, rows_b = np.intersect1d(a.metrics["step"], b.metrics["step"], return_indices=True)
    if not len(steps):
        return "no step in common"
    first: tuple[float, str] | None = None
    for name in sorted((a.metrics.keys() & b.metrics.keys()) - MEASURED):
        here, there = a.metrics[name][rows_a], b.metrics[name][rows_b]
        differs = np.flatnonzero((here != there) & np.isfinite(here) & np.isfinite(there))
        if len(differs) and (first is None or steps[differs[0]] < first[0]):
            first = float(steps[differs[0]]), f"{name}: {here[differs[0]]!s} and {there[differs[0]]!s}"
    return f"different from step {first[0]:.0f} on ({first[1]})" if first else ""


def _left_out(runs: Sequence[ComparedRun], value: Callable[[ComparedRun], float]) -> list[Note]:
    """Return a note for each status of the runs that are left out of the means."""
    out: dict[str, list[ComparedRun]] = {}
    for run in runs:
        if run.status == DIVERGED.status or not np.isfinite(value(run)):
            out.setdefault(run.status, []).append(run)
    without = {COMPLETED.status: "completed without this value"}
    return [
        Note(
            "left out",
            f"not in the means: {len(left)} {without.get(status, status)} ({names(left)}){_first_error(left)}",
            [run.label for run in left],
        )
        for status, left in out.items()
    ]


def _first_error(runs: Sequence[ComparedRun]) -> str:
    """Return `: ` and the first error that the runs recorded; empty if there is none."""
    errors = [error for run in runs if isinstance(error := run.result.get("error"), str)]
    return f": {printable(errors[0])[:MAX_ERROR_CHARS]}" if errors and runs[0].status in UNSUCCESSFUL else ""
