"""A job of a sweep, and how it ended."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

NOT_STARTED = "not started"  # a job that a signal to the sweep came before


@dataclass(frozen=True)
class Job:
    """A run of a sweep: its overrides, its directory, and a title that tells it from the others."""

    overrides: tuple[str, ...]
    directory: Path
    title: str


@dataclass(frozen=True)
class JobEnd:
    """How a job ended: `status` as in `result.json`, or NOT_STARTED; `ran` if it ran in this sweep, not before."""

    job: Job
    status: str
    objective: float | None
    reason: str | None
    result: Mapping[str, Any]
    ran: bool
