"""Combines the plans of all jobs of a sweep."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmtrain.machine import Gpu
from lmtrain.plan.plan import Plan


@dataclass(frozen=True)
class PlannedJob:
    """The plan of a job; `count` is 1 or, for a search, the number of trials, of which one is planned."""

    title: str
    overrides: Sequence[str]
    count: int
    plan: Plan


@dataclass(frozen=True)
class GpuTotal:
    """An estimate of all jobs on one GPU, one after another."""

    gpu: Gpu
    fits: bool | None
    seconds: float
    dollars: float | None
    bound_by: str  # the kind of work that takes most time


@dataclass(frozen=True)
class SweepPlan:
    """The plans of all jobs of a sweep, of which `n_jobs` run at the same time."""

    jobs: Sequence[PlannedJob]
    n_jobs: int

    @property
    def count(self) -> int:
        return sum(job.count for job in self.jobs)

    @property
    def tokens(self) -> int:
        return sum(job.count * job.plan.facts.tokens for job in self.jobs)

    @property
    def seconds(self) -> float | None:
        """Return the time of all jobs on this machine, one after another; None if that of any job is unknown."""
        return self._sum(lambda plan: plan.facts.seconds)

    @property
    def dollars(self) -> float | None:
        return self._sum(lambda plan: plan.dollars)

    @property
    def disk_needed(self) -> int | None:
        """Return the bytes of the checkpoints of all jobs; None if unknown."""
        needed = self._sum(lambda plan: plan.facts.disk_needed)
        return None if needed is None else int(needed)

    def gpu_totals(self) -> list[GpuTotal]:
        """Return an estimate of all jobs for each GPU."""
        totals = []
        for same in zip(*(job.plan.gpu_estimates for job in self.jobs), strict=True):
            fits = [estimate.fits for estimate in same]
            pairs = [(job.count, estimate) for job, estimate in zip(self.jobs, same, strict=True)]
            spent: dict[str, float] = {}
            for count, estimate in pairs:
                spent[estimate.bound_by] = spent.get(estimate.bound_by, 0.0) + count * estimate.seconds
            dollars = [count * estimate.dollars for count, estimate in pairs if estimate.dollars is not None]
            totals.append(
                GpuTotal(
                    same[0].gpu,
                    False if False in fits else None if None in fits else True,
                    sum(count * estimate.seconds for count, estimate in pairs),
                    sum(dollars) if len(dollars) == len(pairs) else None,
                    max(spent, key=lambda kind: spent[kind]),
                )
            )
        return totals

    def remarks(self) -> Mapping[str, int]:
        """Return all remarks, each with the number of jobs to which it applies."""
        found: Counter[str] = Counter()
        for job in self.jobs:
            found.update(dict.fromkeys(job.plan.remarks, job.count))
        return found

    def equal_jobs(self) -> list[list[PlannedJob]]:
        """Return the jobs in groups of equal size, data and time, in order."""
        groups: dict[tuple[Any, ...], list[PlannedJob]] = {}
        for job in self.jobs:
            facts = job.plan.facts
            memory = job.plan.here.peak_bytes if job.plan.here else None
            sent = job.plan.world.sent if job.plan.world else None
            size = (facts.parameters, facts.steps, facts.tokens, facts.seconds, facts.disk_needed, memory, sent)
            groups.setdefault(size, []).append(job)
        return list(groups.values())

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON, with units in the keys."""
        return {
            "jobs": [
                {"title": job.title, "overrides": list(job.overrides), "count": job.count, "plan": job.plan.to_dict()}
                for job in self.jobs
            ],
            "total": {
                "jobs": self.count,
                "at_once": self.n_jobs,
                "tokens": self.tokens,
                "seconds": self.seconds,
                "dollars": self.dollars,
                "disk_bytes": self.disk_needed,
                "gpu_models": [
                    {
                        "name": total.gpu.name,
                        "fits": total.fits,
                        "seconds": total.seconds,
                        "dollars": total.dollars,
                        "bound_by": total.bound_by,
                    }
                    for total in self.gpu_totals()
                ],
            },
            "remarks": dict(self.remarks()),
        }

    def _sum(self, value: Callable[[Plan], float | None]) -> float | None:
        values = [(job.count, value(job.plan)) for job in self.jobs]
        known = [count * one for count, one in values if one is not None]
        return sum(known) if len(known) == len(values) else None
