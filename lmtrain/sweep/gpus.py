"""Divides the machine's GPUs and cores among processes that run at the same time."""

import os
from collections.abc import Mapping

from lmtrain.errors import ConfigError
from lmtrain.machine import THREADS, VISIBLE, available_cores, visible_gpus


def slot_variables(n_jobs: int | None, gpus_per_job: int | None, processes: int = 1) -> list[Mapping[str, str]]:
    """Return, for each slot, the environment variables that give a job its GPUs or cores.

    Args:
        n_jobs: The number of slots; None means one per group of `gpus_per_job` GPUs, or one slot without GPUs. If there
            are more slots than groups, they share the groups evenly.
        gpus_per_job: GPUs per slot; 0 hides all GPUs, and None sets no variables. Without GPUs, each slot gets an equal
            share of the cores.
        processes: The most processes of a job. On GPUs, each of them gets one, even if `gpus_per_job` is smaller.

    Raises:
        ConfigError: a value is invalid, or a job needs more GPUs than there are.
    """
    for key, value, least in (("n_jobs", n_jobs, 1), ("gpus_per_job", gpus_per_job, 0)):
        if value is not None and not (isinstance(value, int) and value >= least):
            raise ConfigError(f"hydra.launcher.{key}={value}: give a whole number, {least} or more")
    if gpus_per_job is None:
        return [{}] * (n_jobs or 1)
    gpus = visible_gpus() if gpus_per_job else []
    if gpus_per_job > max(len(gpus), 1):
        raise ConfigError(
            f"hydra.launcher.gpus_per_job={gpus_per_job}: only {len(gpus)} visible here; "
            f"give at most {max(len(gpus), 1)}"
        )
    if gpus:
        if processes > len(gpus):
            raise ConfigError(
                f"parallel.world_size={processes}: each process needs a GPU, and only {len(gpus)} visible here; give "
                f"at most {len(gpus)}, or compute on the CPU with hydra.launcher.gpus_per_job=0"
            )
        gpus_per_job = max(gpus_per_job, processes)
        groups = [gpus[at : at + gpus_per_job] for at in range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)]
        return [{VISIBLE: ",".join(groups[slot % len(groups)])} for slot in range(n_jobs or len(groups))]
    slots = n_jobs or 1
    variables = {} if gpus_per_job else {VISIBLE: ""}  # with 0, jobs run on the CPU even if there are GPUs
    if slots > 1 and THREADS not in os.environ:
        variables[THREADS] = str(max(1, available_cores() // (slots * processes)))
    return [variables] * slots
