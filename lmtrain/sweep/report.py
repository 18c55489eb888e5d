"""Reports how a sweep ended: the closing table, `sweep.json`, and the commands to run next."""

import json
import logging
import math
import shlex
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from lmtrain.comparison.looking.design import SweepStart, read_design
from lmtrain.config.overrides import quoted
from lmtrain.errors import SUCCESSFUL, UNSUCCESSFUL, SweepEndedError, ending_by_signal
from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json
from lmtrain.files.lock import locked_folder
from lmtrain.files.numbers import is_number
from lmtrain.run.directory import holds_run
from lmtrain.sweep.job import NOT_STARTED, JobEnd
from lmtrain.sweep.pool import LOG
from lmtrain.terminal.console import console
from lmtrain.terminal.paths import short_path
from lmtrain.terminal.redact import redact, redacted
from lmtrain.terminal.units import counted, duration, loss_text, si

log = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"
TABLE_COLUMNS = 100  # the table is at most this wide, so that it fits into a web page or a chat
RESULT = ("best_val_loss", "best_step", "final_train_loss", "steps", "tokens", "seconds", "config_hash")


def write_sweep_report(sweep_dir: Path, ended: Sequence[JobEnd], stopped: int | None) -> None:
    """Write `sweep.json` with the end of each job, best first; `stopped` is the signal that stopped the sweep.

    Jobs that an earlier command ran in the same folder stay in the file, as when seeds are added to a sweep.
    """
    jobs = [
        {
            "title": one.job.title,
            "directory": one.job.directory.name,
            "status": one.status,
            "ran": one.ran,
            "objective": one.objective,
            "reason": one.reason,
            **{key: one.result.get(key) for key in RESULT},
            "overrides": list(one.job.overrides),
        }
        for one in ended
    ]
    with locked_folder(sweep_dir):  # several processes may work on the same sweep and end at the same time
        jobs += _earlier_jobs(sweep_dir, {str(job["directory"]) for job in jobs})
        jobs.sort(key=lambda job: _place(job.get("status"), job.get("objective")))
        content = {"command": ["lmtrain", *sys.argv[1:]], "stopped": stopped, "jobs": jobs}
        write_atomically(sweep_dir / SWEEP_FILE, json.dumps(redacted(content), indent=2) + "\n")


def _earlier_jobs(sweep_dir: Path, ended: Collection[str]) -> list[dict[str, Any]]:
    """Return the jobs in the last report whose runs are still there, without those that have ended now."""
    jobs = read_json(sweep_dir / SWEEP_FILE).get("jobs")
    return [
        {**job, "ran": False}
        for job in (jobs if isinstance(jobs, list) else [])
        if isinstance(job, dict)
        and isinstance(name := job.get("directory"), str)
        and name not in ended
        and holds_run(sweep_dir / Path(name).name)
    ]


def show_sweep_report(sweep_dir: Path, ended: Sequence[JobEnd], stopped: int | None) -> None:
    """Print how each job ended, best first, why jobs failed, and the commands that continue and compare."""
    ended = best_first(ended)
    console.print(jobs_table(ended), width=min(console.width, TABLE_COLUMNS))
    for one in ended:
        if one.status not in SUCCESSFUL and one.status != NOT_STARTED:
            where = f" ({short_path(one.job.directory)}/{LOG})" if _has_run(one) else ""
            words = [one.job.title, one.status, *([one.reason] if one.reason else [])]
            console.print(redact(f"{': '.join(words)}{where}"))
    console.print(f"{count_by_status(ended)}; everything is in {short_path(sweep_dir)}")
    missing = {one.status for one in ended if one.status == NOT_STARTED or _has_run(one)} - SUCCESSFUL
    if missing or stopped is not None:
        again = command_to_continue(sweep_dir, retries=bool(missing & UNSUCCESSFUL))
        console.print(f"to continue: {again}")
    if any(one.result for one in ended):
        console.print(f"to compare: python -m lmtrain compare {shlex.quote(short_path(sweep_dir))}")


def show_second_look(sweep_dir: Path, added: SweepStart | None) -> None:
    """Print a note if a start adds seeds to settings of which somebody may have seen results."""
    if added is None or not added.seen:
        return
    earlier = {run.setting for start in read_design(sweep_dir) if start != added for run in start.runs}
    again = sum(run.setting in earlier for run in added.runs)
    if again:
        console.print(
            f"note: adds {counted(again, 'seed')} to settings that already have results, so compare will judge by a "
            "test that holds after any number of looks",
            style="yellow",
        )


def raise_if_unfinished(ended: Sequence[JobEnd], stopped: int | None) -> None:
    """Raise SweepEndedError with an exit code if a signal stopped the sweep or a job did not complete."""
    if stopped is not None:
        raise SweepEndedError(ending_by_signal(stopped).exit_code)
    if any(one.status not in SUCCESSFUL for one in ended):
        raise SweepEndedError(1)


def best_first(ended: Sequence[JobEnd]) -> list[JobEnd]:
    """Return the jobs that succeeded, sorted by loss, followed by the others."""
    return sorted(ended, key=lambda one: _place(one.status, one.objective))


def _place(status: Any, objective: Any) -> tuple[bool, float]:
    """Return the place of a job in a report: successful ones first, then by loss; the arguments may be from a file."""
    return status not in SUCCESSFUL, float(objective) if is_number(objective) else math.inf


def show_launcher_failure(error: Exception) -> None:
    """Print that the launcher itself failed; the results of its jobs are in their directories."""
    reason = " ".join(f"{type(error).__name__}: {error}".split())
    console.print(redact(f"the launcher failed: {reason}"), soft_wrap=True)
    log.debug("the launcher's traceback", exc_info=error)


def jobs_table(ended: Sequence[JobEnd]) -> Table:
    """Return a table with a row for each job; the values in a job's title are also in its directory's name."""
    rows = Table()
    for heading in ("job", "status", "best val", "at step", "train", "tokens", "time"):
        words = heading in ("job", "status")
        rows.add_column(heading, overflow="fold", justify="left" if words else "right")
    for one in ended:
        rows.add_row(
            one.job.title,
            status_label(one),
            loss_text(one.objective),
            str(one.result.get("best_step") or "–"),
            loss_text(one.result.get("final_train_loss")),
            si(one.result.get("tokens", 0)),
            duration(one.result.get("seconds", 0.0)),
        )
    return rows


def status_label(ended: JobEnd) -> str:
    """Return a job's status, with `earlier` if the job ended in an earlier sweep."""
    return ended.status if ended.ran or ended.status == NOT_STARTED or not ended.result else f"{ended.status} earlier"


def count_by_status(ended: Sequence[JobEnd]) -> str:
    """Return the number of jobs with each status, such as `12 jobs: 10 completed, 2 failed`."""
    counts = Counter(map(status_label, ended))
    return f"{counted(len(ended), 'job')}: {', '.join(f'{count} {name}' for name, count in counts.items())}"


def command_to_continue(sweep_dir: Path, *, retries: bool = False) -> str:
    """Return the command that runs the missing jobs of the same sweep and, with `retries`, the failed ones again."""
    given = [text for text in sys.argv[1:] if not text.startswith(("hydra.sweep.dir=", "retry_failed="))]
    path = short_path(sweep_dir)
    plain = all(character.isalnum() or character in "/_.-" for character in path)
    retry = ["retry_failed=true"] if retries else []
    words = [*given, f"hydra.sweep.dir={path if plain else quoted(path)}", *retry]
    return f"python -m lmtrain {shlex.join(redacted(words))}"


def _has_run(ended: JobEnd) -> bool:
    """Return whether a job ran, now or earlier. If not, its `reason` says why, such as a run with another config."""
    return ended.ran or bool(ended.result)
