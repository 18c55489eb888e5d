"""Starts the processes of one run, as torchrun would, in forks of the test's server."""

import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.command_line import Cli, Started
from support.network import Host


def start_ranks(
    cli: Cli,
    size: int,
    *arguments: str,
    own: Mapping[int, Sequence[str]] | None = None,
    folders: Mapping[int, Path] | None = None,
    hosts: Sequence[Host] = (),
    **environment: str,
) -> list[Started]:
    """Start the processes of a run; `own` has additional arguments of single ranks, and `folders` their folders.

    With `hosts`, each process runs on its own one, and they meet on the first.
    """
    port, meeting = str(free_port()), hosts[0].address if hosts else "127.0.0.1"
    processes = []
    for rank in range(size):
        place = {"RANK": str(rank), "LOCAL_RANK": "0" if hosts else str(rank), "WORLD_SIZE": str(size)}
        address = {"MASTER_ADDR": meeting, "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        more = (own or {}).get(rank, [])
        where = {"folder": (folders or {}).get(rank), "host": hosts[rank] if hosts else None}
        processes.append(cli.start(*arguments, *more, **where, **place, **address, **environment))
    return processes


def train_ranks(cli: Cli, size: int, *arguments: str, timeout_s: float = 120) -> list[Started]:
    """Run a command in so many processes of one run, which must all succeed."""
    processes = start_ranks(cli, size, *arguments)
    for process in processes:
        assert process.wait(timeout_s) == 0, [(each.stdout, each.stderr) for each in processes]
    return processes


def wait_for_all(processes: Sequence[Started], timeout_s: float = 60) -> list[int]:
    """Return the exit codes of processes that must all end in time."""
    deadline = time.monotonic() + timeout_s
    return [process.wait(max(0.1, deadline - time.monotonic())) for process in processes]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
