"""Finds out from a sweep's files whether the number of seeds was fixed before the first look at the results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.looking.design import DESIGN_FILE, PlannedRun, SweepStart, is_of_campaign, read_design, sweep_of
from lmtrain.comparison.statistics.replicates import group_numbers
from lmtrain.errors import SUCCESSFUL, UNSUCCESSFUL
from lmtrain.terminal.units import counted

Mode = Literal["planned", "again", "unknown"]


@dataclass(frozen=True)
class Looks:
    """How often the results may have been looked at before their number was fixed.

    Attributes:
        mode: `planned` if the number of seeds was fixed before, and is looked at once; `again` if seeds were added
            after a look, or runs are still missing; `unknown` if no sweep's files tell.
        reason: Why, in words.
        sweep: The folder of the sweep of all runs; None if there is no such folder.
        missing: The directories, relative to the sweep's, of the planned runs that have not ended.
    """

    mode: Mode
    reason: str
    sweep: Path | None = None
    missing: tuple[str, ...] = ()


def looks_at(runs: Sequence[ComparedRun]) -> Looks:
    """Return how often the results of these runs may have been looked at."""
    one_of_each_folder = list({run.path.parent: run.path for run in runs}.values())
    if any(map(is_of_campaign, one_of_each_folder)):
        return Looks("again", "the runs are of a campaign, which decides after each pair of seeds (decide --list)")
    folders = set(map(sweep_of, one_of_each_folder))
    sweep = folders.pop() if len(folders) == 1 else None
    if sweep is None:
        where = "several sweeps" if None not in folders and folders else f"no single sweep with a {DESIGN_FILE}"
        return Looks("unknown", f"the runs come from {where}")
    starts = read_design(sweep)
    planned = _planned(starts)
    by_directory = {_relative(run.path, sweep): run for run in runs}
    strange = [run for directory, run in by_directory.items() if directory not in planned]
    if strange:
        return Looks("unknown", f"the sweep did not plan {strange[0].label}", sweep)
    if not starts or starts[0].seen:
        return Looks("unknown", "the sweep's folder had results before its design was recorded", sweep)
    return _judge(sweep, by_directory, planned)


def _judge(
    sweep: Path, by_directory: Mapping[str, ComparedRun], planned: Mapping[str, tuple[int, PlannedRun]]
) -> Looks:
    rounds: dict[int, set[int]] = {}
    for directory, number in zip(by_directory, group_numbers(list(by_directory.values())), strict=True):
        rounds.setdefault(number, set()).add(planned[directory][0])
    settings = {planned[directory][1].setting for directory in by_directory}
    absent = [
        directory
        for directory, (_, run) in planned.items()
        if run.setting in settings and directory not in by_directory
    ]
    left_out = [directory for directory in absent if (sweep / directory / "result.json").is_file()]
    running = [name for name, run in by_directory.items() if run.status not in SUCCESSFUL | UNSUCCESSFUL]
    missing = (*running, *(name for name in absent if name not in left_out))
    if any(len(own) > 1 for own in rounds.values()):
        return Looks("again", "seeds were added after there were results to look at", sweep, missing)
    if missing:
        count = len(missing)
        return Looks("again", f"{counted(count, 'planned run')} {_have(count)} not ended yet", sweep, missing)
    if left_out:
        return Looks("unknown", f"{counted(len(left_out), 'planned run')} {_have(len(left_out))} been left out", sweep)
    return Looks("planned", "the number of seeds was fixed before the first result", sweep)


def _planned(starts: Sequence[SweepStart]) -> dict[str, tuple[int, PlannedRun]]:
    """Return, by directory, each planned run with its round: starts before the first result are one round."""
    found: dict[str, tuple[int, PlannedRun]] = {}
    number = 0
    for start in starts:
        number += start.seen > 0
        found |= {run.directory: (number, run) for run in start.runs if run.directory not in found}
    return found


def _relative(path: Path, sweep: Path) -> str:
    return path.absolute().relative_to(sweep).as_posix()


def _have(count: int) -> str:
    return "has" if count == 1 else "have"
