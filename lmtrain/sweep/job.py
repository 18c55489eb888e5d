"""Defines a job of a sweep and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_STARTED = "not started"  # the sweep was stopped before the job's turn


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its overrides, its directory, and a title with the overrides that differ between jobs."""

    overrides: tuple[str, ...]
    directory: Path
    title: str


@dataclass(frozen=True)
class JobEnd:
    """The end of a job.

    `status` is the status in `result.json`, or NOT_STARTED. `ran` is True if the job ran in this sweep, and False if it
    had ended earlier or was not started.
    """

    job: Job
    status: str
    objective: float | None
    reason: str | None
    result: Mapping[str, Any]
    ran: bool
