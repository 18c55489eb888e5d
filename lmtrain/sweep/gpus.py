"""Divides the machine's GPUs and cores among processes that run at the same time."""

import itertools
import os
import re
import subprocess
from collections.abc import Mapping

from lmtrain.errors import ConfigError
from lmtrain.machine import available_cores

VISIBLE = "CUDA_VISIBLE_DEVICES"
THREADS = "OMP_NUM_THREADS"
NVIDIA_SMI_TIMEOUT_S = 30


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, named as in CUDA_VISIBLE_DEVICES, without loading CUDA."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        named = [name.strip() for name in visible.split(",")]
        ends = next((index for index, name in enumerate(named) if name in ("", "-1")), len(named))
        return named[:ends]  # CUDA ignores everything from the first invalid name on
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # UUIDs, because nvidia-smi and CUDA may number GPUs differently. A GPU with MIG devices is used through these.
    names: list[str] = re.findall(r"\(UUID: ([^)]+)\)", listed)
    divided = {gpu for gpu, following in itertools.pairwise(names) if following.startswith("MIG-")}
    return [name for name in names if name.startswith("MIG-") or name not in divided]


def slot_variables(n_jobs: int | None, gpus_per_job: int | None) -> list[Mapping[str, str]]:
    """Return, for each slot, the environment variables that give a job its GPUs or cores.

    Args:
        n_jobs: The number of slots; None means one per group of `gpus_per_job` GPUs, or one slot without GPUs. If there
            are more slots than groups, they share the groups evenly.
        gpus_per_job: GPUs per slot; 0 hides all GPUs, and None sets no variables. Without GPUs, each slot gets an equal
            share of the cores.

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
        groups = [gpus[at : at + gpus_per_job] for at in range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)]
        return [{VISIBLE: ",".join(groups[slot % len(groups)])} for slot in range(n_jobs or len(groups))]
    slots = n_jobs or 1
    variables = {} if gpus_per_job else {VISIBLE: ""}  # with 0, jobs run on the CPU even if there are GPUs
    if slots > 1 and THREADS not in os.environ:
        variables[THREADS] = str(max(1, available_cores() // slots))
    return [variables] * slots
