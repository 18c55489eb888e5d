"""Records, in a sweep's folder, which runs were planned when: whether seeds were added after a look can be read there.

`design.jsonl` has a line for each start of the sweep that added jobs. Lines are only ever appended.
"""

import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lmtrain.files.durable import append_line
from lmtrain.files.limited import MAX_JSON_BYTES, read_limited
from lmtrain.files.lock import locked_folder
from lmtrain.terminal.redact import redacted

DESIGN_FILE = "design.jsonl"
CAMPAIGN_FILE = "decisions.jsonl"  # the ledger of a campaign, whose runs are judged after each pair
MAX_DEPTH = 3  # folders between a sweep and its jobs, with a user's own `hydra.sweep.subdir`


@dataclass(frozen=True)
class PlannedRun:
    """A job of a sweep: its directory, relative to the sweep's, and its overrides."""

    directory: str
    overrides: tuple[str, ...]

    @property
    def setting(self) -> tuple[str, ...]:
        """Return the overrides without the seed; equal for runs of one setting."""
        return tuple(text for text in self.overrides if key_of(text) != "seed")


@dataclass(frozen=True)
class SweepStart:
    """A start of a sweep that added runs.

    Attributes:
        time: When it was, in UTC.
        command: The words of the command after `python -m lmtrain`.
        seen: The number of runs in the folder that already had results, so that somebody may have looked at them.
        runs: The runs that it added.
    """

    time: str
    command: tuple[str, ...]
    seen: int
    runs: tuple[PlannedRun, ...]


def key_of(override: str) -> str:
    """Return the key of an override or of a word of a command, without `+` or `~`."""
    return override.partition("=")[0].lstrip("+~")


def record_start(sweep_dir: Path, planned: Sequence[tuple[Path, Sequence[str]]]) -> SweepStart | None:
    """Append a line for the runs, given as directory and overrides, that no earlier line has; return it, if any."""
    runs = [
        PlannedRun(Path(os.path.relpath(directory, sweep_dir)).as_posix(), tuple(redacted(list(overrides))))
        for directory, overrides in planned
    ]
    with locked_folder(sweep_dir):  # several processes may start the same sweep
        known = {run.directory for start in read_design(sweep_dir) for run in start.runs}
        added = tuple({run.directory: run for run in runs if run.directory not in known}.values())
        if not added:
            return None
        folders = known | {run.directory for run in added}
        start = SweepStart(
            datetime.now(UTC).isoformat(timespec="seconds"),
            tuple(redacted(sys.argv[1:])),
            sum(_has_results(sweep_dir / folder) for folder in folders),
            added,
        )
        append_line(sweep_dir / DESIGN_FILE, json.dumps(_as_dict(start)))
    return start


def read_design(sweep_dir: Path) -> list[SweepStart]:
    """Return the starts of a sweep in order; empty without a design. A line that a crash cut short does not count."""
    try:
        lines = read_limited(sweep_dir / DESIGN_FILE, MAX_JSON_BYTES).decode(errors="replace").splitlines()
    except (OSError, ValueError):
        return []
    return [start for line in lines if (start := _start_in(line)) is not None]


def sweep_of(run_dir: Path) -> Path | None:
    """Return the folder of the sweep that a run directory lies in, if the sweep has a design."""
    for folder in list(run_dir.absolute().parents)[:MAX_DEPTH]:
        if (folder / DESIGN_FILE).is_file():
            return folder
    return None


def is_of_campaign(run_dir: Path) -> bool:
    """Return whether a run directory lies in the folder of a campaign."""
    return any((folder / CAMPAIGN_FILE).is_file() for folder in list(run_dir.absolute().parents)[:MAX_DEPTH])


def _has_results(run_dir: Path) -> bool:
    return any(path.is_file() and path.stat().st_size for path in (run_dir / "metrics.jsonl", run_dir / "result.json"))


def _as_dict(start: SweepStart) -> dict[str, Any]:
    runs = [{"directory": run.directory, "overrides": list(run.overrides)} for run in start.runs]
    return {"time": start.time, "command": list(start.command), "seen": start.seen, "runs": runs}


def _start_in(line: str) -> SweepStart | None:
    """Return the start that a line describes; None if the line is damaged."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):
        return None
    match content:
        case {"time": str(time), "command": list(command), "seen": int(seen), "runs": list(runs)}:
            found = tuple(run for one in runs if (run := _run_in(one)) is not None)
            return SweepStart(time, tuple(map(str, command)), seen, found)
    return None


def _run_in(content: Mapping[str, Any]) -> PlannedRun | None:
    match content:
        case {"directory": str(directory), "overrides": list(overrides)}:
            return PlannedRun(directory, tuple(map(str, overrides)))
    return None
