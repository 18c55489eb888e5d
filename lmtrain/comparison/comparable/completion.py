"""Says which runs have no value where the others are compared, which count unfinished, and how to compare all."""

import math
from collections import Counter
from collections.abc import Sequence

from lmtrain.comparison.columns import place_text
from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.notes import Note, names
from lmtrain.comparison.run_values import ComparedValue, EqualPlace, deciding_runs
from lmtrain.errors import COMPLETED, DIVERGED, PRUNED, UNSUCCESSFUL

ENDED = UNSUCCESSFUL | {COMPLETED.status, PRUNED.status}  # the other statuses may still change


def completion_notes(runs: Sequence[ComparedRun], value: ComparedValue) -> list[Note]:
    """Return notes about runs that have not completed and about runs without a value."""
    with_value = [run for run in runs if math.isfinite(value.of(run))]
    metric, equal = value.metric, value.place if value.kind == "at-step" else None
    unfinished = [run for run in with_value if run.status != COMPLETED.status]
    found = []
    decided_by_unfinished = any(run.status != COMPLETED.status for run in deciding_runs(runs, metric))
    if len(with_value) > 1 and (
        decided_by_unfinished or (value.chosen and any(run.status not in ENDED for run in unfinished))
    ):
        found.append(_preliminary(unfinished, with_value, equal))
    elif unfinished:
        text = (
            f"{statuses(unfinished)} runs have a value and count: what happens to a run later does not change it "
            f"({names(unfinished)})"
        )
        found.append(Note("unfinished", text, [run.label for run in unfinished]))
    if equal and not value.chosen:
        found += _completed_elsewhere(runs, metric, equal)
    return found + _all_in_common(runs, with_value, metric)


def statuses(runs: Sequence[ComparedRun]) -> str:
    """Return how many runs have each status, such as `2 pruned and 1 running`."""
    return " and ".join(f"{number} {status}" for status, number in Counter(run.status for run in runs).items())


def _preliminary(unfinished: Sequence[ComparedRun], runs: Sequence[ComparedRun], equal: EqualPlace | None) -> Note:
    where = f" at {place_text(equal)}" if equal else ""
    if len(unfinished) == len(runs):
        who = f"none of the {len(runs)} runs has completed"
    else:
        who = f"{len(unfinished)} of {len(runs)} runs {'has' if len(unfinished) == 1 else 'have'} not completed"
    text = f"{who} ({statuses(unfinished)}): this is a look in between{where}, and its result may change"
    return Note("preliminary", text, [run.label for run in unfinished], mark="preliminary")


def _completed_elsewhere(runs: Sequence[ComparedRun], metric: str, equal: EqualPlace) -> list[Note]:
    """Return notes if completed runs have no value at the equal step; they name the reason and the way out."""
    steps = {run.label: run.series(metric)[0] for run in runs if run.status == COMPLETED.status}
    ends = {label: xs[-1] for label, xs in steps.items() if len(xs)}
    found = []
    late = [label for label in ends if steps[label][0] > equal.place]
    if late:
        deciding = min(deciding_runs(runs, metric), key=lambda run: run.series(metric)[0][-1])
        first = min(ends[label] for label in late)
        text = (
            f"runs are compared at {place_text(equal)} because of {deciding.label}, but {len(late)} of {len(ends)} "
            f"completed runs were first evaluated later; --at-step {first:.0f} or --filter 'steps>={first:.0f}' "
            "compares those"
        )
        found.append(Note("evaluated later", text, late))
    early = [label for label, end in ends.items() if end < equal.place]
    if early:
        text = (
            f"{len(early)} of {len(ends)} completed runs end before {place_text(equal)}, the last step that the others "
            f"share; --filter 'steps<{equal.place:.0f}' compares them, and --at-step N compares all at another step"
        )
        found.append(Note("shorter", text, early))
    return found


def _all_in_common(runs: Sequence[ComparedRun], with_value: Sequence[ComparedRun], metric: str) -> list[Note]:
    """Return a note with the last step at which the unfinished runs without a value can be compared as well."""
    without = [
        run
        for run in runs
        if not any(run is other for other in with_value)
        and run.status not in (COMPLETED.status, DIVERGED.status)
        and len(run.series(metric)[0])
    ]
    steps = [set(run.series(metric)[0].tolist()) for run in [*with_value, *without]]
    if not (without and with_value) or not (common := set.intersection(*steps)):
        return []
    text = (
        f"{statuses(without)} {'run has' if len(without) == 1 else 'runs have'} no value here; --at-step "
        f"{max(common):.0f} compares all {len(steps)}, at the last step that they share"
    )
    return [Note("without value", text, [run.label for run in without])]
