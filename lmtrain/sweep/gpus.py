"""The machine's GPUs and cores, dealt out to processes that run at the same time."""

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
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, without loading CUDA."""
    visible = os.environ.get(VISIBLE)
    if visible is not None:
        named = [name.strip() for name in visible.split(",")]
        ends = next((index for index, name in enumerate(named) if name in ("", "-1")), len(named))
        return named[:ends]  # as CUDA reads it
    try:
        listed = subprocess.run(
            ["nvidia-smi", "-L"], capture_output=True, text=True, timeout=NVIDIA_SMI_TIMEOUT_S, check=True
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    # By name: nvidia-smi and CUDA may number them differently. A GPU that is cut into MIG devices is used through them.
    names: list[str] = re.findall(r"\(UUID: ([^)]+)\)", listed)
    sliced = {gpu for gpu, following in itertools.pairwise(names) if following.startswith("MIG-")}
    return [name for name in names if name.startswith("MIG-") or name not in sliced]


def slot_variables(n_jobs: int | None, gpus_per_job: int | None) -> list[Mapping[str, str]]:
    """Return the environment variables of each of the `n_jobs` slots, which say what GPUs or cores a job may use.

    `n_jobs` null: as many slots as there are groups of `gpus_per_job` GPUs; without GPUs, one. More slots than groups
    share them evenly. Without GPUs, each slot gets its share of the cores. `gpus_per_job` null changes nothing.

    Raises:
        ConfigError: there are some GPUs, but fewer than one job is to have.
    """
    for key, value, least in (("n_jobs", n_jobs, 1), ("gpus_per_job", gpus_per_job, 0)):
        if value is not None and not (isinstance(value, int) and value >= least):
            raise ConfigError(f"hydra.launcher.{key}={value}: give a whole number, {least} or more")
    if gpus_per_job is None:
        return [{}] * (n_jobs or 1)
    gpus = visible_gpus() if gpus_per_job else []
    if gpus_per_job > max(len(gpus), 1):
        raise ConfigError(f"hydra.launcher.gpus_per_job={gpus_per_job}: there are {len(gpus)} GPUs to be seen here")
    if gpus:
        deals = [gpus[at : at + gpus_per_job] for at in range(0, len(gpus) - gpus_per_job + 1, gpus_per_job)]
        return [{VISIBLE: ",".join(deals[slot % len(deals)])} for slot in range(n_jobs or len(deals))]
    slots = n_jobs or 1
    variables = {} if gpus_per_job else {VISIBLE: ""}  # 0: on the CPU, even if there are GPUs
    if slots > 1 and THREADS not in os.environ:
        variables[THREADS] = str(max(1, available_cores() // slots))
    return [variables] * slots
