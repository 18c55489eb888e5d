"""Hands the jobs of a sweep to Slurm as one job array and waits for them (`hydra/launcher=submitit_slurm`)."""

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.batch_size import for_processes
from lmtrain.config.keys import did_you_mean
from lmtrain.errors import ConfigError, InterruptedBySignal
from lmtrain.machine import is_installed
from lmtrain.parallel.world import refuse_other_number
from lmtrain.sweep.job import Job
from lmtrain.sweep.job_config import job_config, most_processes, sweep_search_path
from lmtrain.sweep.launcher import job_return, jobs_of
from lmtrain.sweep.progress import run_all
from lmtrain.sweep.slurm.pool import SlurmPool
from lmtrain.sweep.slurm.task import SlurmTask
from lmtrain.terminal.console import console
from lmtrain.terminal.units import counted

# With submitit's other executors.
SHARED = ("name", "timeout_min", "nodes", "tasks_per_node", "cpus_per_task", "gpus_per_node", "mem_gb")
SLURM_ONLY = (
    *("partition", "account", "qos", "constraint", "exclude", "gres"),
    *("signal_delay_s", "array_parallelism", "setup", "additional_parameters"),
)
NONE = "lmtrain.parallel.choices.none"
WHOLE_NUMBERS = {  # the least value of each
    **dict.fromkeys(("timeout_min", "array_parallelism", "nodes", "tasks_per_node", "cpus_per_task"), 1),
    **dict.fromkeys(("signal_delay_s", "max_num_timeout", "gpus_per_node"), 0),
}


class SlurmLauncher(Launcher):
    """Runs the jobs of a sweep on a cluster; `conf/hydra/launcher/submitit_slurm.yaml` explains the options.

    Args:
        submitit_folder: The folder for submitit's own files; `%j` stands for the id of the Slurm job.
        max_num_timeout: How often a job may go back into the queue because its time is over.
        options: Options of `sbatch`, and of submitit.
    """

    def __init__(self, submitit_folder: str, max_num_timeout: int, **options: Any) -> None:
        self.folder = Path(submitit_folder)
        self.max_num_timeout = max_num_timeout
        # Hydra passes containers of OmegaConf, which submitit does not understand.
        self.options: dict[str, Any] = {
            key: OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
            for key, value in options.items()
        }

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
        """Submit the jobs that have work to do, wait until all have ended, and return how each ended.

        A signal ends only the waiting: the jobs stay in the queue.

        Raises:
            ConfigError: an option is wrong, or there is no Slurm here.
            InterruptedBySignal: a signal has ended the waiting.
        """
        path = tuple(sweep_search_path(self.config.hydra))
        task = SlurmTask(Path.cwd(), path, bool(self.config.retry_failed), self.max_num_timeout)
        jobs = jobs_of(self.config, job_overrides, initial_job_idx)
        if self.processes == 1:
            self.give_gpus(most_processes(jobs, path))
        pool = SlurmPool(self._executor(), self.folder, task, Path(self.config.hydra.sweep.dir).absolute())
        if self.processes > 1:
            self._check_processes(jobs, path)
        try:
            ended = run_all(pool, jobs, path)
        except InterruptedBySignal:
            if ids := " ".join(pool.ids):
                verb = "stays" if pool.unfinished == 1 else "stay"
                count = counted(pool.unfinished, "job")
                console.print(f"{count} {verb} in Slurm's queue; to cancel: scancel {ids}", soft_wrap=True)
            raise
        return [job_return(one) for one in ended]

    @property
    def processes(self) -> int:
        """The number of processes of each run, which is one for each task of a job."""
        return int((self.options.get("nodes") or 1) * (self.options.get("tasks_per_node") or 1))

    def give_gpus(self, processes: int) -> None:
        """Give each job of a cluster with GPUs one for each of its processes, which its one task starts itself."""
        given = self.options.get("gpus_per_node")
        if isinstance(given, int) and 0 < given < processes:
            console.print(f"each job gets {processes} GPUs, one for each process of parallel.world_size={processes}")
            self.options["gpus_per_node"] = processes

    def _check_processes(self, jobs: Sequence[Job], search_path: tuple[str, ...]) -> None:
        """Raise ConfigError if a run can't be shared by so many processes; on a node, that would be seen late."""
        for job in jobs:
            config = job_config(job.overrides, search_path, job.directory).config
            refuse_other_number(config["parallel"].get("world_size"), self.processes)
            for_processes(DictConfig(dict(config)), self.processes)
            if config["parallel"]["_target_"] == NONE:
                raise ConfigError(
                    f"parallel=none: hydra.launcher.nodes and tasks_per_node start {self.processes} processes for each "
                    "run; use parallel=auto"
                )

    def _executor(self) -> Any:
        """Return submitit's executor with all options."""
        self._check_options()
        import submitit  # imported here, because it is an optional package

        logging.getLogger("submitit").setLevel(logging.WARNING)
        executor = submitit.AutoExecutor(self.folder, cluster="slurm", slurm_max_num_timeout=self.max_num_timeout)
        given = {key: value for key, value in self.options.items() if value is not None}
        prefixed = {key if key in SHARED else f"slurm_{key}": value for key, value in given.items()}
        srun = []
        if cores := given.get("cpus_per_task"):
            srun.append(f"--cpus-per-task={cores}")  # since Slurm 22.05, srun does not inherit it
        if self.processes > 1:
            prefixed["nodes"] = given.get("nodes", 1)
            srun.append("--kill-on-bad-exit=1")  # the other tasks wait for the first one
        if srun:
            prefixed["slurm_srun_args"] = srun
        executor.update_parameters(**prefixed, stderr_to_stdout=True)
        return executor

    def _check_options(self) -> None:
        known = (*SHARED, *SLURM_ONLY)
        for key, value in self.options.items():
            if key not in known:
                way_out = did_you_mean(key, known, "hydra.launcher.") or (
                    f"; any option of sbatch works as +hydra.launcher.additional_parameters.{key}={value}"
                )
                raise ConfigError(f"hydra.launcher.{key}={value}: unknown key{way_out}")
        for key, least in WHOLE_NUMBERS.items():
            value = self.options.get(key, self.max_num_timeout if key == "max_num_timeout" else None)
            if value is not None and not (isinstance(value, int) and value >= least):
                raise ConfigError(f"hydra.launcher.{key}={value}: give a whole number, {least} or more")
        if not is_installed("submitit"):
            raise ConfigError("hydra/launcher=submitit_slurm: install it with pip install 'lmtrain[submitit]'")
        if shutil.which("sbatch") is None:
            raise ConfigError("hydra/launcher=submitit_slurm: there is no sbatch here; start it where you submit jobs")
