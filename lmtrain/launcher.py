"""Runs the jobs of a sweep, each in a fresh interpreter: no thread count, flag or memory of one reaches the next."""

import importlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType, ModuleType

from hydra._internal.utils import get_args_parser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from rich.table import Table

from lmtrain.console import console, duration, si
from lmtrain.interrupt import SIGNALS
from lmtrain.run_directory import read_json

NOT_STARTED = -1
SWEEP_FILE = "multirun.yaml"  # what Hydra's sweeper leaves in a sweep directory


class SweepFailedError(RuntimeError):
    """At least one job did not complete; the closing table has told which."""


class SweepStoppedError(RuntimeError):
    """A signal stopped the sweep; the running job has saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.number = number


class ProcessLauncher(Launcher):
    """`hydra/launcher=process`: `python -m lmtrain` for every job, one after the other.

    A job that fails does not stop the others. Every job's config is checked before the first one starts. An
    interrupt reaches the running job, which saves and stops, and no further one starts.
    """

    def __init__(self) -> None:
        self.stopped: int | None = None  # the signal that did it

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        sweep_dir = Path(self.config.hydra.sweep.dir)
        self._check(job_overrides, sweep_dir)
        console.print(f"sweep of {len(job_overrides)} jobs in {sweep_dir}")
        names = [swept(overrides, job_overrides) for overrides in job_overrides]
        jobs = [
            self._run(sweep_dir / str(initial_job_idx + number), list(overrides), f"{number + 1}/{len(names)}: {name}")
            for number, (overrides, name) in enumerate(zip(job_overrides, names, strict=True))
        ]
        print_table(jobs, names)
        if self.stopped:
            raise SweepStoppedError(self.stopped)
        if any(job.status is JobStatus.FAILED for job in jobs):
            raise SweepFailedError
        return jobs

    def _check(self, job_overrides: Sequence[Sequence[str]], sweep_dir: Path) -> None:
        """Every job's config, and then the data: a typo in the last one should not wait for the others.

        Raises:
            ConfigError: the first job's mistakes; the sweep directory that Hydra has made is gone then.
        """
        from lmtrain.config import ConfigError, check, compose
        from lmtrain.preflight import preflight

        try:
            configs = [
                compose([*search_path(get_args_parser().parse_args().config_dir), *overrides])
                for overrides in job_overrides
            ]
            for config in configs:
                check(config)
            for config in configs:
                preflight(config)
        except ConfigError:
            if sweep_dir.is_dir() and [entry.name for entry in sweep_dir.iterdir()] == [SWEEP_FILE]:
                (sweep_dir / SWEEP_FILE).unlink()
                for made in (sweep_dir, sweep_dir.parent, sweep_dir.parent.parent):
                    if made == Path.cwd() or any(made.iterdir()):
                        break
                    made.rmdir()
            raise

    def _run(self, run_dir: Path, overrides: list[str], title: str) -> JobReturn:
        job = JobReturn(overrides=overrides, task_name="lmtrain")
        job.working_dir = str(run_dir)
        code = NOT_STARTED
        if not self.stopped:
            console.rule(f"job {title}", align="left")
            arguments = [
                *overrides,
                f"hydra.run.dir={_quoted(job.working_dir)}",
                *search_path(get_args_parser().parse_args().config_dir),
            ]
            code = self._run_process([sys.executable, "-m", "lmtrain", *arguments])
        if code == 0:
            job.status = JobStatus.COMPLETED
            job.return_value = read_json(Path(job.working_dir) / "result.json").get("objective")
        else:
            job.status = JobStatus.FAILED
            job.return_value = RuntimeError("not started" if code == NOT_STARTED else f"exit code {code}")
        return job

    def _run_process(self, command: list[str]) -> int:
        """A job's exit code; hands it what comes meanwhile (SIGINT reaches the whole terminal by itself)."""
        process: subprocess.Popen[bytes] | None = None

        def note(number: int, frame: FrameType | None) -> None:
            self.stopped = number
            if number != signal.SIGINT and process is not None:
                process.send_signal(number)

        previous = {number: signal.signal(number, note) for number in SIGNALS}
        try:
            process = subprocess.Popen(command)
            if self.stopped is not None and self.stopped != signal.SIGINT:  # it came before there was a process
                process.send_signal(self.stopped)
            return process.wait()
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


def search_path(config_dir: str | None) -> list[str]:
    """What `--config-dir` adds, in the form that composing by hand takes: an override, or none."""
    return [f"hydra.searchpath=[{_quoted(f'file://{Path(config_dir).absolute()}')}]"] if config_dir else []


def _quoted(value: str) -> str:
    """As Hydra's override grammar takes any text."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def swept(overrides: Sequence[str], jobs: Sequence[Sequence[str]]) -> str:
    """The overrides that not all jobs share."""
    return " ".join(override for override in overrides if not all(override in job for job in jobs)) or "(none)"


def print_table(jobs: Sequence[JobReturn], names: Sequence[str]) -> None:
    """All jobs with how they ended, best validation loss first."""
    rows = []
    for job, name in zip(jobs, names, strict=True):
        result = read_json(Path(str(job.working_dir)) / "result.json")
        best = result.get("best_val_loss")
        status = result.get("status") or ("not started" if str(job._return_value) == "not started" else "failed")
        rows.append((best if best is not None else float("inf"), name, status, result, str(job.working_dir)))
    table = Table()
    for heading in ("job", "status", "best val", "at step", "train", "tokens", "time", "directory"):
        table.add_column(
            heading, overflow="fold", justify="left" if heading in ("job", "status", "directory") else "right"
        )
    for _, name, status, result, directory in sorted(rows, key=lambda row: row[0]):
        table.add_row(
            name,
            status,
            _number(result.get("best_val_loss")),
            str(result.get("best_step") or "–"),
            _number(result.get("final_train_loss")),
            si(result.get("tokens", 0)),
            duration(result.get("seconds", 0.0)),
            directory,
        )
    console.print(table)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def register() -> None:
    """Makes the launcher known to Hydra, which takes plugins from the package `hydra_plugins` alone.

    Without another plugin installed there is no such package, and a folder of that name beside lmtrain would hold
    just this class; so it gets its place in `hydra_plugins` here.
    """
    try:
        importlib.import_module("hydra_plugins")
    except ImportError:
        package = ModuleType("hydra_plugins")
        package.__path__ = []
        sys.modules["hydra_plugins"] = package
    ProcessLauncher.__module__ = "hydra_plugins.lmtrain"
    sys.modules[ProcessLauncher.__module__] = sys.modules[__name__]
    Plugins.instance().register(ProcessLauncher)
