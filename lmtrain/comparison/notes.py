"""Defines the remarks that accompany a comparison."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.terminal.as_text import first_few

MAX_NAMED = 5


@dataclass(frozen=True)
class Note:
    """A remark about a comparison.

    Attributes:
        kind: What the remark is about, in one or two words for programs, such as `schedules`.
        text: The remark in words, with the numbers and a way out.
        runs: The labels of the runs that it is about.
        refuses: True if these runs allow no verdict; the remark then takes the place of the verdict.
        mark: Words that each verdict begins with, such as `preliminary`; empty if the verdicts stand as they are.
    """

    kind: str
    text: str
    runs: Sequence[str] = ()
    refuses: bool = False
    mark: str = ""

    def __str__(self) -> str:
        return self.text


def without_seed(label: str) -> str:
    """Return the label of a run without its seed, as far as that leaves something."""
    return label.partition(" seed=")[0]


def names(runs: Iterable[ComparedRun]) -> str:
    """Return the labels of the first few runs, and how many others there are."""
    return first_few((run.label for run in runs), MAX_NAMED, separator="; ")
