"""Lets the tasks of one Slurm job be the processes of one run: the first one starts the run, and the others join it."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from lmtrain.files.durable import write_atomically
from lmtrain.files.limited import read_json
from lmtrain.loop.stop_request import signals_to_handle
from lmtrain.machine import PARENT
from lmtrain.parallel.interface import own_address
from lmtrain.parallel.world import LOCAL_RANK, MASTER_ADDRESS, MASTER_PORT, RANK, WORLD_SIZE

POLL_S = 0.3


@dataclass(frozen=True)
class Task:
    """One of the several tasks of this Slurm job.

    Attributes:
        rank: Its number, from 0.
        size: The number of tasks.
        local_rank: Its number among those on the same node.
        nodes: The names of the job's nodes.
        invitation: The file in which the first task says where the processes meet, and with which arguments. The disk
            is shared, and each start of the job has a file of its own.
    """

    rank: int
    size: int
    local_rank: int
    nodes: Sequence[str]
    invitation: Path

    def invite(self, arguments: Sequence[str]) -> Mapping[str, str]:
        """Let the other tasks start processes with these arguments; return the variables of this task's process."""
        meeting = {MASTER_ADDRESS: _address(self.nodes), MASTER_PORT: str(_free_port())}
        self._write({"arguments": list(arguments), "meeting": meeting})
        return self._variables(meeting)

    def dismiss(self) -> None:
        """Let the other tasks end, should there have been nothing to do."""
        if not self.invitation.exists():
            self._write({"arguments": None})

    def join(self) -> None:
        """Wait for the first task, and run a process that trains with its process; signals are passed on to it."""
        # Without a limit: Slurm ends this task when the first one fails (srun --kill-on-bad-exit).
        while not (invitation := read_json(self.invitation)):
            time.sleep(POLL_S)
        if invitation["arguments"] is None:
            return
        process = subprocess.Popen(
            [sys.executable, "-m", "lmtrain", *invitation["arguments"]],
            stdin=subprocess.DEVNULL,
            env={**os.environ, **self._variables(invitation["meeting"]), PARENT: str(os.getpid())},
            start_new_session=True,
        )

        def pass_on(number: int, frame: FrameType | None) -> None:
            process.send_signal(number)

        for number in signals_to_handle():
            signal.signal(number, pass_on)
        process.wait()  # how it ended, the first process records

    def _variables(self, meeting: Mapping[str, str]) -> dict[str, str]:
        place = {RANK: str(self.rank), WORLD_SIZE: str(self.size), LOCAL_RANK: str(self.local_rank)}
        return {**place, **meeting}

    def _write(self, content: Mapping[str, object]) -> None:
        write_atomically(self.invitation, json.dumps(content))


def this_task() -> Task | None:
    """Return which task of a Slurm job with several tasks this process is; None in a job with one."""
    import submitit  # imported here, because it is an optional package

    job = submitit.JobEnvironment()
    if job.num_tasks == 1:
        return None
    start = os.environ.get("SLURM_RESTART_COUNT") or "0"
    invitation = job.paths.folder / f"tasks-{job.raw_job_id}-{start}.json"
    return Task(job.global_rank, job.num_tasks, job.local_rank, job.hostnames, invitation)


def _address(nodes: Sequence[str]) -> str:
    """Return the address at which the job's nodes reach this one, which is the first."""
    return "127.0.0.1" if len(nodes) == 1 else own_address(nodes[-1]) or socket.gethostname()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])
