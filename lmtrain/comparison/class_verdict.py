"""Draws the conclusions about runs whose values measure the same."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmtrain.comparison.comparable.completion import completion_notes
from lmtrain.comparison.comparable.conditions import condition_notes
from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.looking.judge import judge
from lmtrain.comparison.looking.looks import Looks, Mode
from lmtrain.comparison.notes import Note
from lmtrain.comparison.run_values import ComparedValue
from lmtrain.comparison.statistics.conclusions import Conclusions, conclude
from lmtrain.comparison.statistics.group import ReplicateGroup


@dataclass(frozen=True)
class ClassVerdict:
    """What can be said of runs whose values measure the same, and the notes that belong to it."""

    conclusions: Conclusions
    looks: Looks
    notes: Sequence[Note]


@dataclass(frozen=True)
class Wishes:
    """What the user asks of a verdict.

    Attributes:
        mode: How often the results were looked at; None means what the files of the runs' sweep say.
        marks: Words that each verdict begins with.
        difference: The difference for which to say how many seeds a planned comparison needs.
        baseline: The group to compare all others with; None means the best one.
        margin: A difference that is too small to matter.
    """

    mode: Mode | None = None
    marks: Sequence[str] = ()
    difference: float | None = None
    baseline: ReplicateGroup | None = None
    margin: float | None = None


def class_verdict(
    runs: Sequence[ComparedRun],
    value: ComparedValue,
    groups: Sequence[ReplicateGroup],
    about_groups: Sequence[Note],
    wishes: Wishes,
) -> ClassVerdict:
    """Compare the settings of runs whose values measure the same.

    Args:
        runs: The runs.
        value: The value that represents a run.
        groups: The runs' groups of replicates.
        about_groups: Notes about the groups.
        wishes: What the user asks. A baseline that is none of the groups is ignored.
    """
    with_value = [run for run in runs if math.isfinite(value.of(run))]
    notes = [*condition_notes(with_value, value), *completion_notes(runs, value), *about_groups]
    refused = [note.text for note in notes if note.refuses]
    baseline = next((group for group in groups if group is wishes.baseline), None)
    conclusions = conclude(groups, sign=value.better, refused=refused, baseline=baseline, margin=wishes.margin)
    conclusions, looks, about_looks = judge(conclusions, runs, value.better, wishes.mode, wishes.difference)
    marks = list(dict.fromkeys([*wishes.marks, *(note.mark for note in notes if note.mark and not note.refuses)]))
    return ClassVerdict(_marked(conclusions, marks), looks, [*notes, *(Note("looks", text) for text in about_looks)])


def _marked(conclusions: Conclusions, marks: Sequence[str]) -> Conclusions:
    """Return the conclusions with the marks in front of the first sentence and of each verdict on two settings."""
    if not (marks and conclusions.comparisons):
        return conclusions
    mark = f"{', '.join(marks)}: "
    verdicts = {conclusions.sentences[0], *(one.sentence for one in conclusions.comparisons)}
    return replace(
        conclusions,
        comparisons=[replace(one, sentence=mark + one.sentence) for one in conclusions.comparisons],
        sentences=[mark + text if text in verdicts else text for text in conclusions.sentences],
    )
