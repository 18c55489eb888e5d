"""Remarks on runs that were picked, or are picked from, by their own values: such values look better than they are."""

from collections import Counter
from collections.abc import Sequence

import scipy

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.notes import Note
from lmtrain.config.recorded.run_names import CONFIRM_FILE
from lmtrain.errors import COMPLETED
from lmtrain.run.directory import SEARCH_FILE
from lmtrain.terminal.paths import short_path

CONFIRM_FOLDER = "confirm"  # in the folder of a sweep


def luck_of_the_best(count: int) -> float:
    """Return by how much the best of `count` values is too good on average if all are equal, in units of their noise.

    This is the expected maximum of independent normal values, by Blom's approximation (1958), which is right to 1%.
    """
    return float(scipy.special.ndtri((count - 0.375) / (count + 0.25))) if count > 1 else 0.0


def luck_in_words(count: int, noise: float | None = None) -> str:
    """Return a sentence that says by how much the best of `count` values may be too good."""
    luck = luck_of_the_best(count)
    size = f"{luck:.1f} times the noise between seeds" + ("" if noise is None else f" ({luck * noise:.2g})")
    return f"the best of {count} was picked by the same values, so its value is probably too good, by up to {size}"


def notes_on_picking(runs: Sequence[ComparedRun]) -> list[Note]:
    """Return a note for each search among the runs, and for each sweep whose best settings were run again."""
    completed = Counter(run.path.absolute().parent for run in runs if run.status == COMPLETED.status)
    notes = []
    for folder, count in completed.items():
        name = short_path(folder)
        confirmed = (folder / CONFIRM_FOLDER / CONFIRM_FILE).is_file()
        if confirmed:
            way_out = f"runs with fresh seeds confirm it or not: python -m lmtrain compare {name}/{CONFIRM_FOLDER}"
        else:
            way_out = f"python -m lmtrain confirm {name} runs the best again with fresh seeds"
        if (folder / SEARCH_FILE).is_file() and count > 1:
            notes.append(Note("search", f"{name} is a search: {luck_in_words(count)}; {way_out}"))
        elif confirmed:
            notes.append(Note("search", f"{name}: {way_out}"))
    return notes
