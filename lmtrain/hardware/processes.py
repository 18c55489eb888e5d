"""What parts of a run that know nothing about its other processes do with them together."""

import contextlib
import os
import socket

import torch.distributed as dist
from torch import Tensor

from lmtrain.torch_internals import abort_process_group


def sum_over_processes(numbers: Tensor) -> None:
    """Replace whole numbers on the device by their sums over all processes, in place; all must call this together."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(numbers)


def leave_the_others(*, at_once: bool = False) -> None:
    """Close the connections to the other processes, if there are any; their collectives with this one fail then.

    `at_once` also ends collectives that wait for a process which no longer answers.
    """
    if not dist.is_available() or not dist.is_initialized():
        return
    if at_once:
        abort_process_group()
    else:
        dist.destroy_process_group()


def close_connections(keep_port: int) -> int:
    """Close this process's network connections, except those at a port, and return how many were closed.

    What is left of a group of processes can keep its connections open, so that the others wait for this one.
    """
    closed = 0
    for name in os.listdir("/dev/fd"):
        try:
            connection = socket.socket(fileno=os.dup(int(name)))
        except OSError:  # not a socket
            continue
        with connection:
            if connection.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            with contextlib.suppress(OSError):  # not connected
                if keep_port not in (connection.getsockname()[1], connection.getpeername()[1]):
                    connection.shutdown(socket.SHUT_RDWR)
                    closed += 1
    return closed
