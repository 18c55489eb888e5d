"""Prints the plan of a sweep."""

from collections.abc import Callable, Mapping, Sequence

from lmtrain.plan.sweep_plan import PlannedJob, SweepPlan
from lmtrain.plan.terminal_view import print_gpu_table
from lmtrain.plan.world.estimate import TYPICAL, WorldEstimate
from lmtrain.terminal.as_text import first_few
from lmtrain.terminal.tables import (
    as_bytes,
    as_dollars,
    as_milliseconds,
    as_time,
    new_table,
    print_heading,
    print_line,
    print_rows,
    print_table,
)
from lmtrain.terminal.units import counted, percent, si

SHOWN_ROWS = 40
SHOWN_TITLES = 3
UNKNOWN = "?"

COLUMNS: Mapping[str, Callable[[PlannedJob], str]] = {
    "parameters": lambda job: si(job.plan.facts.parameters),
    "steps": lambda job: f"{job.plan.facts.steps:,}",
    "tokens": lambda job: si(job.plan.facts.tokens),
    "memory": lambda job: _known(job.plan.here.peak_bytes if job.plan.here else None, as_bytes),
    "time here": lambda job: _known(job.plan.facts.seconds, as_time),
    "cost": lambda job: _known(job.plan.dollars, as_dollars),
}
# For jobs of many processes: of one process, and on GPUs of the kind `TYPICAL`.
WORLD_COLUMNS: Mapping[str, Callable[[PlannedJob], str]] = {
    "memory": lambda job: _known(job.plan.world.memory_bytes if job.plan.world else None, as_bytes),
    "fits": lambda job: _on_typical(job, lambda each: "yes" if each.fits else "no"),
    "sends": lambda job: _known(job.plan.world.sent if job.plan.world else None, as_bytes),
    "step": lambda job: _on_typical(job, lambda each: as_milliseconds(each.step.seconds)),
    "efficiency": lambda job: _on_typical(job, lambda each: percent(each.step.efficiency)),
    "time": lambda job: _on_typical(job, lambda each: as_time(each.seconds)),
    "cost": lambda job: _on_typical(job, lambda each: _known(each.dollars, as_dollars)),
}


def show_sweep_plan(sweep: SweepPlan, *, mfu: float | None) -> None:
    """Print the cost of each job and of all jobs, and remarks about likely mistakes."""
    first = sweep.jobs[0].plan
    print_line(f"plan of a sweep: {counted(sweep.count, 'job')} of {first.name}; {first.machine}", style="bold")
    many = all(job.plan.world for job in sweep.jobs)
    print_heading(f"each job{f', with {TYPICAL} GPUs' if many else ''} (jobs of the same size share a row)")
    _print_jobs(sweep, WORLD_COLUMNS if many else COLUMNS)
    print_heading("all jobs")
    print_rows(_totals(sweep))
    if first.run_flops and not any(job.plan.world for job in sweep.jobs):
        print_heading("all jobs on one GPU, one after another")
        print_gpu_table(sweep.gpu_totals(), mfu=mfu)
    found = sweep.remarks()
    print_heading("remarks" if found else "no remarks")
    for remark, count in found.items():
        print_line(f"! {remark}" + (f" ({count:,} of {sweep.count:,} jobs)" if count < sweep.count else ""), "yellow")


def _print_jobs(sweep: SweepPlan, possible: Mapping[str, Callable[[PlannedJob], str]]) -> None:
    columns = {name: column for name, column in possible.items() if {column(job) for job in sweep.jobs} != {UNKNOWN}}
    groups = sweep.equal_jobs()
    counts = possible is COLUMNS or len(groups) < sweep.count
    table = new_table("", *(["jobs"] if counts else []), *columns)
    for group in groups[:SHOWN_ROWS]:
        count = sum(job.count for job in group)
        number = [f"{count:,}"] if counts else []
        table.add_row(_title(group, sweep), *number, *(column(group[0]) for column in columns.values()))
    print_table(table)
    if len(groups) > SHOWN_ROWS:
        print_line(f"  and {counted(len(groups) - SHOWN_ROWS, 'more row')}; --json writes every job")


def _title(group: Sequence[PlannedJob], sweep: SweepPlan) -> str:
    """Return the overrides that only this group of jobs shares, or the titles of its first jobs."""
    if len(group) == 1:
        return group[0].title
    everywhere, here = (set.intersection(*(set(job.overrides) for job in jobs)) for jobs in (sweep.jobs, group))
    shared = [override for override in group[0].overrides if override in here - everywhere]
    return " ".join(shared) or first_few([job.title for job in group], SHOWN_TITLES, separator="; ")


def _totals(sweep: SweepPlan) -> list[tuple[str, str]]:
    rows = [("tokens", si(sweep.tokens))]
    if sweep.seconds is not None:
        cost = "" if sweep.dollars is None else f" and {as_dollars(sweep.dollars)}"
        together = ""
        if sweep.n_jobs > 1:
            best = as_time(sweep.seconds / sweep.n_jobs)
            together = f"; {sweep.n_jobs} at once (hydra.launcher.n_jobs) take at least {best}, on as many devices"
        rows.append(("here", f"{as_time(sweep.seconds)}{cost} one after another, without evaluations{together}"))
    if sweep.disk_needed is not None:
        free = sweep.jobs[0].plan.facts.disk_free
        rows.append(
            ("checkpoints", f"{as_bytes(sweep.disk_needed)}" + (f"; {as_bytes(free)} are free" if free else ""))
        )
        if free and sweep.disk_needed > free:
            rows.append(("", "too many: use another disk (hydra.sweep.dir), or keep fewer (trainer.keep_checkpoints)"))
    return rows


def _on_typical(job: PlannedJob, text: Callable[[WorldEstimate], str]) -> str:
    """Return a text about a job of many processes on the GPU `TYPICAL`."""
    found = [each for each in (job.plan.world.estimates if job.plan.world else ()) if each.gpu.name == TYPICAL]
    return text(found[0]) if found else UNKNOWN


def _known(value: float | None, text: Callable[[float], str]) -> str:
    return UNKNOWN if value is None else text(value)
