"""Shows a running sweep: as a live table in a terminal, otherwise as a line whenever a job starts or ends."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from rich.live import Live
from rich.table import Table

from lmtrain.files.metrics import read_newest
from lmtrain.sweep.job import Job, JobEnd
from lmtrain.sweep.job_config import job_config
from lmtrain.sweep.report import status_label
from lmtrain.terminal.console import console
from lmtrain.terminal.units import duration, loss_text

POLL_S = 0.1
REFRESH_S = 0.5
OTHER_ROWS = 8  # rows for the table's frame, the counts and the shell prompt
MAX_TITLE_CHARS = 80


class RunningJob(Protocol):
    """A job that runs, on this machine or elsewhere; `resumed` if it continues a run."""

    @property
    def job(self) -> Job: ...
    @property
    def resumed(self) -> bool: ...


class Pool(Protocol):
    """Runs jobs: `JobPool` on this machine, `SlurmPool` on a cluster."""

    @property
    def running(self) -> Sequence[RunningJob]: ...
    @property
    def stopped(self) -> int | None: ...
    @property
    def unfinished(self) -> int: ...
    def submit(self, job: Job) -> None: ...
    def poll(self) -> list[JobEnd]: ...


@dataclass(frozen=True)
class Progress:
    """The progress of a run, from the last lines of its metrics."""

    step: int = 0
    train_loss: float | None = None
    val_loss: float | None = None
    seconds: float = 0.0

    def seconds_left(self, max_steps: int) -> float | None:
        return (max_steps - self.step) * self.seconds / self.step if self.step else None


def read_progress(metrics: Path) -> Progress:
    """Return the progress of a running run from its `metrics.jsonl`."""
    newest = read_newest(metrics)
    seconds = newest.get("seconds") or 0.0
    return Progress(int(newest.get("step") or 0), newest.get("train/loss"), newest.get("val/loss"), seconds)


class SweepProgress:
    """Shows the jobs of a pool (a context manager); call `show` after each `poll`.

    `total` is the number of all jobs, or None if it is unknown.
    """

    def __init__(self, pool: Pool, total: int | None, search_path: Sequence[str]) -> None:
        self._pool = pool
        self._total = total
        self._search_path = tuple(search_path)
        self._ended: list[JobEnd] = []
        self._started = 0
        self._announced: list[RunningJob] = []
        self._shown_at = 0.0
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def show(self, ended: Sequence[JobEnd]) -> None:
        self._ended += ended
        if self._live is None:
            self._print_lines(ended)
        elif ended or time.monotonic() - self._shown_at > REFRESH_S:
            self._shown_at = time.monotonic()
            self._live.update(self._table(), refresh=True)

    def _print_lines(self, ended: Sequence[JobEnd]) -> None:
        for one in ended:
            words = [f"val {one.objective:.4f}"] if one.objective is not None else []
            words += [one.reason] if one.reason else []
            console.print(f"{self._count(one)} {one.job.title}: {'; '.join([status_label(one), *words])}")
        for running in self._pool.running:
            if not any(running is one for one in self._announced):
                console.print(f"{'resumed' if running.resumed else 'started'} {running.job.title}")
        self._announced = [*self._pool.running]

    def _count(self, one: JobEnd) -> str:
        done = next(number for number, other in enumerate(self._ended, 1) if other is one)
        return f"[{done}/{self._total}]" if self._total else f"[{done}]"

    def _table(self) -> Table:
        rows = Table("job", "state", "step", "train", "val", "left", caption_justify="left")
        for column in rows.columns[2:]:
            column.justify = "right"
        for running in self._pool.running:
            rows.add_row(*self._running_row(running))
        for one in self._ended[: -1 - max(0, console.height - OTHER_ROWS - len(self._pool.running)) : -1]:
            result = one.result
            losses = [loss_text(result.get(key)) for key in ("final_train_loss", "best_val_loss")]
            rows.add_row(_shortened(one.job.title), status_label(one), str(result.get("steps", "–")), *losses, "")
        counts = Counter({"running": len(self._pool.running)}) + Counter(map(status_label, self._ended))
        waiting = (self._total or 0) - sum(counts.values())
        words = [f"{count} {name}" for name, count in [*counts.items(), ("waiting", waiting)] if count > 0]
        rows.caption = ", ".join(words) + ("; stopping" if self._pool.stopped is not None else "")
        return rows

    def _running_row(self, running: RunningJob) -> list[str]:
        config = job_config(running.job.overrides, self._search_path, running.job.directory).config
        max_steps = config.get("trainer", {}).get("max_steps")  # a user's trainer may not have it
        progress = read_progress(running.job.directory / "metrics.jsonl")
        left = progress.seconds_left(max_steps) if max_steps else None
        return [
            _shortened(running.job.title),
            "resumed" if running.resumed else "running",
            f"{progress.step}/{max_steps}" if max_steps else str(progress.step),
            loss_text(progress.train_loss),
            loss_text(progress.val_loss),
            "–" if left is None else duration(left),
        ]


def run_all(pool: Pool, jobs: Sequence[Job], search_path: Sequence[str]) -> list[JobEnd]:
    """Run and show the jobs; return how each ended, in the order of `jobs`."""
    for job in jobs:
        pool.submit(job)
    ended: list[JobEnd] = []
    with SweepProgress(pool, len(jobs), search_path) as progress:
        while pool.unfinished:
            ended += (now := pool.poll())
            progress.show(now)
            if pool.unfinished:
                time.sleep(POLL_S)
    return [next(one for one in ended if one.job is job) for job in jobs]


def _shortened(title: str) -> str:
    return title if len(title) <= MAX_TITLE_CHARS else f"{title[: MAX_TITLE_CHARS - 1]}…"
