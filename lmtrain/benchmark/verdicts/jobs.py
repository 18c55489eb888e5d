"""Lists the scenarios and runs their cases, several at once."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row
from lmtrain.benchmark.verdicts.scenarios import (
    campaigns,
    effects_at_null,
    forks,
    looking_again,
    margins_and_baselines,
    null_tables,
    planned_looks,
    power,
    savings_of_curves,
    survivors,
    unequal_looks,
)

FEWEST_TABLES = 20
SCENARIOS: dict[str, tuple[str, Callable[[], list[Case]]]] = {
    "null": ("tables without any difference, over a grid of sizes and kinds of noise", null_tables.cases),
    "power": ("tables with one better setting, against separate tests with Holm's correction", power.cases),
    "survivors": ("equal settings of which one lost its worst runs", survivors.cases),
    "forks": ("forks of a few parents", forks.cases),
    "looks": ("equal runs with unequal intervals of evaluation", unequal_looks.cases),
    "again": ("comparing again as seeds are added", looking_again.cases),
    "planned": ("seeds planned from a pilot study, and one look", planned_looks.cases),
    "effects": ("settings without an effect", effects_at_null.cases),
    "margins": ("verdicts with a margin, and with a baseline", margins_and_baselines.cases),
    "savings": ("what a difference is worth in steps", savings_of_curves.cases),
    "campaign": ("a campaign of many ideas", campaigns.cases),
}


@dataclass(frozen=True)
class CaseResult:
    """The measured numbers of one case."""

    scenario: str
    case: str
    tables: int
    rows: Sequence[Row]
    verdicts: Sequence[str]
    seconds: float
    typical: bool


@dataclass(frozen=True)
class CaseJob:
    """One case to simulate; it is named rather than held, so that another process can run it."""

    scenario: str
    case: str
    tables: int
    seed: int


def jobs(scenarios: Iterable[str], tables: int, seed: int, *, quick: bool) -> list[CaseJob]:
    """Return the cases of the scenarios; with `quick`, only the typical ones."""
    return [
        CaseJob(scenario, case.name, max(FEWEST_TABLES, round(tables * case.share)), seed)
        for scenario in scenarios
        for case in _cases(scenario).values()
        if case.typical or not quick
    ]


def run_jobs(todo: Sequence[CaseJob], processes: int) -> Iterator[CaseResult]:
    """Simulate the cases, several at once if `processes` is above 1, and yield the results in order.

    Every case has its own generator, so that its numbers depend neither on the other cases nor on the processes.
    """
    if processes == 1:
        yield from map(run_job, todo)
        return
    with ProcessPoolExecutor(processes) as pool:
        yield from pool.map(run_job, todo)


def run_job(job: CaseJob) -> CaseResult:
    case = _cases(job.scenario)[job.case]
    generator = np.random.default_rng([job.seed, *f"{job.scenario}: {job.case}".encode()])
    started = time.perf_counter()
    rows = case.measure(job.tables, generator)
    seconds = time.perf_counter() - started
    return CaseResult(
        job.scenario, job.case, job.tables, rows, [case.judge(row) for row in rows], seconds, case.typical
    )


@cache
def _cases(scenario: str) -> dict[str, Case]:
    return {case.name: case for case in SCENARIOS[scenario][1]()}
