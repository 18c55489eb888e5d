"""Finds replicates (runs that differ only in the seed) and repeated runs (the same config and seed)."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from lmtrain.compare.labels import hashable, labels_of
from lmtrain.compare.notes import Note, names
from lmtrain.compare.runs import NEUTRAL_SETTING, ComparedRun, differing_keys, forked_from
from lmtrain.compare.statistics.group import ReplicateGroup
from lmtrain.errors import COMPLETED, DIVERGED, UNSUCCESSFUL
from lmtrain.files.metrics import MEASURED
from lmtrain.run.identity import config_hash
from lmtrain.terminal.as_text import printable

ORIGIN_KEY = "from"  # a key of a group's settings, for the parent of forked runs
SEED = re.compile(r"\bseed=\S+( \(.*?\))?")
SAME_START = re.compile(r"(?!(model|data|prepare)\.|trainer\.gradient_accumulation_steps$|from$)")
MAX_ERROR_CHARS = 200


def replicate_groups(
    runs: Sequence[ComparedRun], value: Callable[[ComparedRun], float]
) -> tuple[list[ReplicateGroup], list[Note]]:
    """Return the groups that have a value, in the order of their first runs, and notes about the runs left out.

    Args:
        runs: The runs.
        value: Returns the value of a run, whatever its status; NaN if the run has none.
    """
    keys = [key for key in differing_keys(runs) if key != "seed"]
    members: dict[tuple[Any, ...], list[ComparedRun]] = {}
    for run in runs:
        members.setdefault((*(hashable(run.config.get(key)) for key in keys), origin_label(run)), []).append(run)
    with_origin = len({setting[-1] for setting in members}) > 1
    labels = labels_of([own[0].config for own in members.values()], keys)
    found, notes = [], []
    for (setting, own), label in zip(members.items(), labels, strict=True):
        if with_origin and setting[-1]:
            label = f"{label} {setting[-1]}".strip()
        by_seed: dict[Any, list[float]] = {}
        for run in own:
            if np.isfinite(number := value(run)):
                by_seed.setdefault(hashable(run.seed), []).append(number)
        # Runs with the same seed are not independent, so they count as one value.
        values = {seed: float(np.mean(numbers)) for seed, numbers in by_seed.items()}
        without = {hashable(run.seed): run.status for run in own if hashable(run.seed) not in values}
        diverged = tuple(seed for seed, status in without.items() if status == DIVERGED.status)
        missing = {seed: status for seed, status in without.items() if status != DIVERGED.status}
        if values:
            settings = dict(zip([*keys, *([ORIGIN_KEY] if with_origin else [])], setting, strict=False))
            found.append(ReplicateGroup(label or "all runs", settings, values, _start_of(settings), diverged, missing))
            if diverged:
                text = (
                    f"{found[-1].label}: {len(diverged)} of {len(own)} runs diverged; the mean is over the other "
                    "runs, so this setting looks better than it is"
                )
                notes.append(Note("diverged", text, [run.label for run in own if run.status == DIVERGED.status]))
    return found, [*_left_out(runs, value), *notes]


def _start_of(settings: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Return the settings that change which weights and batches a seed gives: those of the model and the data."""
    return tuple((key, value) for key, value in settings.items() if not SAME_START.match(key))


def repeated_runs(runs: Sequence[ComparedRun]) -> list[Note]:
    """Return a note for each set of runs with the same config and seed, which says whether their metrics are equal."""
    same: dict[str, list[ComparedRun]] = {}
    for run in runs:
        config = {key: value for key, value in run.config.items() if not NEUTRAL_SETTING.fullmatch(key)}
        same.setdefault(config_hash(config), []).append(run)
    repeated = [(digest, own) for digest, own in same.items() if len(own) > 1]
    return [Note("repeated", _describe_repeats(digest, own), [run.label for run in own]) for digest, own in repeated]


def _describe_repeats(digest: str, runs: Sequence[ComparedRun]) -> str:
    first = runs[0]
    verdicts = [_first_difference(first, run) for run in runs[1:]]
    verdict = next(filter(None, verdicts), "bit-identical at every step that they share")
    hashes = {str(run.result["config_hash"]) for run in runs if "config_hash" in run.result}
    shown_hash = hashes.pop() if len(hashes) == 1 else digest
    return f"the same config and seed (hash {shown_hash}): {names(runs)}; {verdict}"


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
        if not np.isfinite(value(run)):
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


def origin_label(run: ComparedRun) -> str:
    """Return a forked run's parent in words, with `*` for its seed; empty for other runs.

    Without the seed, the forks of several replicates are replicates too.
    """
    return SEED.sub("seed=*", run.parent or "") if forked_from(run) else ""
