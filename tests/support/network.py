"""Two hosts on this machine: Linux's network namespaces with a host name and an address each, behind one switch.

They share the disk, as the nodes of a cluster do. This needs root and Debian's package `iproute2`.
"""

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PREFIX = "lmtrain"
CARD = "eth0"  # of each host
SYSTEM_FOLDERS = ("/usr/sbin", "/sbin")  # not in every user's PATH


@dataclass(frozen=True)
class Host:
    """A host; `namespace` is the name under which `ip netns` knows it, and `name` is its host name.

    `names` is a file in which commands find the addresses of both hosts. Forks of the test's server don't read it.
    """

    namespace: str
    name: str
    address: str
    names: str

    def command(self, *command: str) -> list[str]:
        """Return a command line that runs a command on this host."""
        inside = 'hostname "$0" && mount --bind "$1" /etc/hosts && shift && exec "$@"'
        enter = [_program("ip"), "netns", "exec", self.namespace, "unshare", "--uts", "--mount", "sh", "-c", inside]
        return [*enter, self.name, self.names, *command]


@dataclass(frozen=True)
class Network:
    """Two hosts and the switch between them."""

    first: Host
    second: Host
    switch: str

    def cut(self) -> None:
        """Pull the cable of the second host: its packets are lost, and nobody closes a connection."""
        _ip("-n", self.switch, "link", "set", "second", "down")

    def reconnect(self) -> None:
        """Undo `cut` and `slow_down`."""
        _ip("-n", self.switch, "link", "set", "second", "up")
        for host in (self.first, self.second):
            subprocess.run([_program("tc"), "-n", host.namespace, "qdisc", "del", "dev", CARD, "root"],
                           capture_output=True, check=False)  # fmt: skip

    def slow_down(self, rate: str) -> None:
        """Let each host send only so much, such as `2mbit`; what it sends waits in a queue."""
        limit = ["tbf", "rate", rate, "burst", "16kb", "latency", "2000ms"]
        for host in (self.first, self.second):
            _run(_program("tc"), "-n", host.namespace, "qdisc", "replace", "dev", CARD, "root", *limit)


def missing() -> str | None:
    """Return why no hosts can be made here, or None if it may be possible."""
    if os.name != "posix" or os.geteuid() != 0:
        return "making network namespaces needs root"
    absent = [name for name in ("ip", "tc", "unshare") if not _found(name)]
    return f"{' and '.join(absent)} not installed (apt-get install iproute2)" if absent else None


@contextlib.contextmanager
def two_hosts(folder: Path) -> Iterator[Network]:
    """Make two hosts, and remove them afterwards; `folder` is for a file of theirs.

    Raises:
        OSError: This machine does not allow it.
    """
    _remove_left_over()
    own = f"{PREFIX}-{os.getpid()}"
    addresses = {"a": "10.213.0.1", "b": "10.213.0.2"}
    lines = ["127.0.0.1 localhost", *(f"{address} host-{name}" for name, address in addresses.items())]
    names = folder / "hosts"
    names.write_text("\n".join([*lines, ""]))
    hosts = [Host(f"{own}-{name}", f"host-{name}", address, str(names)) for name, address in addresses.items()]
    network = Network(*hosts, f"{own}-switch")
    try:
        _ip("netns", "add", network.switch)
        _ip("-n", network.switch, "link", "add", "bridge", "type", "bridge")
        _ip("-n", network.switch, "link", "set", "bridge", "up")
        for port, host in (("first", network.first), ("second", network.second)):
            _ip("netns", "add", host.namespace)
            peer = ["peer", "name", CARD, "netns", host.namespace]
            _ip("-n", network.switch, "link", "add", port, "type", "veth", *peer)
            _ip("-n", network.switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", host.namespace, "address", "add", f"{host.address}/24", "dev", CARD)
            for card in ("lo", CARD):
                _ip("-n", host.namespace, "link", "set", card, "up")
        yield network
    finally:
        for name in (network.switch, network.first.namespace, network.second.namespace):
            _remove(name)


def _remove_left_over() -> None:
    """Remove the hosts of tests that were killed."""
    listed = subprocess.run([_program("ip"), "netns", "list"], capture_output=True, text=True, check=False).stdout
    for name, pid in re.findall(rf"^({PREFIX}-(\d+)-\w+)", listed, re.MULTILINE):
        if not os.path.exists(f"/proc/{pid}"):
            _remove(name)


def _remove(name: str) -> None:
    subprocess.run([_program("ip"), "netns", "delete", name], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    _run(_program("ip"), *arguments)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"{' '.join(command)}: {done.stderr.strip()}")


def _found(name: str) -> str | None:
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join(SYSTEM_FOLDERS))


def _program(name: str) -> str:
    return _found(name) or name
