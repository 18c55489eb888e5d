"""Says why the processes of a run have not met yet; needs no torch."""

import os
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from lmtrain.parallel.interface import is_loopback
from lmtrain.parallel.world import MASTER_ADDRESS, MASTER_PORT, World

PATIENCE_S = 20.0  # hosts start at different times
CONNECTION_TIMEOUT_S = 5.0


@contextmanager
def saying_who_waits(world: World, patience_s: float = PATIENCE_S) -> Iterator[threading.Timer]:
    """Print one line, should the block take longer than usual, about what stands between the processes."""
    timer = threading.Timer(patience_s, lambda: print_line(reason_to_wait(world)))
    timer.daemon = True
    timer.start()
    try:
        yield timer
    finally:
        timer.cancel()


def print_line(text: str) -> None:
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


def reason_to_wait(world: World) -> str:
    """Return a line about why a process can't meet the others yet."""
    host, port = os.environ.get(MASTER_ADDRESS, ""), os.environ.get(MASTER_PORT, "")
    address = f"{MASTER_ADDRESS}={host} {MASTER_PORT}={port}"
    try:
        target = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0][4]
    except (OSError, ValueError) as error:
        return f"{world}: {address}: not known on this host ({_words(error)}); give an address that all hosts know"
    if world.is_first:
        if not _is_own(str(target[0])):
            return f"{world}: {address}: {target[0]} is not an address of this host, as it must be"
        local = "; other hosts can't reach this loopback address" if is_loopback(str(target[0])) else ""
        return f"{world}: waits for the other {world.size - 1} of {world.size} processes at {address}{local}"
    try:
        socket.create_connection((host, int(port)), timeout=CONNECTION_TIMEOUT_S).close()
    except OSError as error:
        loopback = ", which is this host itself" if is_loopback(str(target[0])) else ""
        return (
            f"{world}: {address}: can't reach rank 0 there{loopback} ({_words(error)}); the address must be that "
            "of the host of rank 0, and its firewall must let this port through; waits for it"
        )
    return f"{world}: waits for the other {world.size - 1} of {world.size} processes at {address}"


def _is_own(address: str) -> bool:
    """Return whether this host has an address; if not, the kernel refuses to wait for connections there."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
