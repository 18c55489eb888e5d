"""Which of a run's processes this is, as torchrun and Slurm tell it in the environment; needs no torch."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

from lmtrain.errors import ConfigError

# What torchrun sets for each process. Without torchrun, the user of `srun` sets them from Slurm's own variables.
RANK, WORLD_SIZE, LOCAL_RANK, LOCAL_WORLD_SIZE = "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"
MASTER_ADDRESS, MASTER_PORT = "MASTER_ADDR", "MASTER_PORT"
# Set for rank 0 by lmtrain, where that starts the processes itself: the file descriptor of a socket at that address.
STORE_SOCKET = "LMTRAIN_STORE_SOCKET"


@dataclass(frozen=True)
class World:
    """A process among those of a run.

    Attributes:
        rank: The number of this process, from 0.
        size: The number of processes.
        local_rank: The number of this process among those on the same host, which is also that of its GPU.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes the run directory and the log."""
        return self.rank == 0

    def __str__(self) -> str:
        return f"rank {self.rank} on {socket.gethostname()}"


ALONE = World()


def this_world(environment: Mapping[str, str] | None = None) -> World:
    """Return the place of this process among those of the run; a process that was started alone is the only one.

    Raises:
        ConfigError: A variable is not a whole number, is missing, or is out of range.
    """
    environment = os.environ if environment is None else environment
    if not environment.get(WORLD_SIZE):
        return ALONE
    size = _number(environment, WORLD_SIZE)
    if size == 1:
        return ALONE
    rank, local_rank = _number(environment, RANK), _number(environment, LOCAL_RANK)
    if not 0 <= rank < size:
        raise ConfigError(f"{RANK}={rank}: must be below {WORLD_SIZE}={size}; start the processes with torchrun")
    for name in (MASTER_ADDRESS, MASTER_PORT):
        if not environment.get(name):
            raise ConfigError(f"{name}: is not set, but {WORLD_SIZE}={size}; start the processes with torchrun")
    return World(rank, size, local_rank)


def quiet_torch() -> None:
    """Keep torch from printing a C++ stack for each lost connection; call this before torch is loaded."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def refuse_other_number(world_size: int | None, started: int) -> None:
    """Raise ConfigError if another number of processes was started than `parallel.world_size` says."""
    if world_size not in (None, started):
        were = "1 process was" if started == 1 else f"{started} processes were"
        raise ConfigError(
            f"parallel.world_size={world_size}: {were} started; start {world_size}, or give parallel.world_size=null"
        )


def refuse_several_processes(command: str) -> None:
    """Raise ConfigError under torchrun for what one process does: each process would do it."""
    if this_world().size > 1:
        raise ConfigError(f"WORLD_SIZE: {command} works in one process; start it without torchrun")


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal() or (name == WORLD_SIZE and int(text) < 1):
        if not text:
            raise ConfigError(f"{name}: is not set, but {WORLD_SIZE} is; start the processes with torchrun")
        raise ConfigError(f"{name}={text}: this environment variable must be a whole number; unset it")
    return int(text)
