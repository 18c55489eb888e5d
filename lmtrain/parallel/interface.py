"""Finds the network interface through which this host reaches others; needs no torch."""

import array
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

INTERFACE = "GLOO_SOCKET_IFNAME"  # environment variable: the interface on which gloo waits for other processes
SIOCGIFADDR = 0x8915  # linux/sockios.h
IPV6_ADDRESSES = Path("/proc/net/if_inet6")


def own_address(other: str) -> str | None:
    """Return the address of this host in connections to another one, given by name or address; None if unknown."""
    with suppress(OSError):
        for family, kind, protocol, _, target in socket.getaddrinfo(other, 9, type=socket.SOCK_DGRAM):
            with suppress(OSError), socket.socket(family, kind, protocol) as probe:
                probe.connect(target)  # of a datagram socket: nothing is sent
                return str(probe.getsockname()[0])
    return None


def is_loopback(address: str | None) -> bool:
    """Return whether only this host itself can be reached at its address; an unknown address counts as such."""
    return address is None or ipaddress.ip_address(address.partition("%")[0]).is_loopback


def interface_for(addresses: Sequence[str | None], rank: int) -> str | None:
    """Return the interface through which a process reaches the others; None if it can't be known or does not matter.

    `addresses` are those of all processes in their connections to the first one, by rank. A host may know itself, by
    the name of the first process, at a loopback address. Then the way to another host decides.
    """
    own = addresses[rank]
    if is_loopback(own):
        others = [each for each in addresses if each is not None and not is_loopback(each)]
        own = own_address(others[0]) if others else None
    return None if own is None or is_loopback(own) else _interface_with(own)


def check_chosen_interface(addresses: Sequence[str | None]) -> None:
    """Check the interface that the user has chosen; a wrong one would make gloo wait for minutes.

    Raises:
        ValueError: This host does not have it, or the other hosts, with these addresses, can't be reached through it.
    """
    known = {name for _, name in socket.if_nameindex()}
    for name in filter(None, os.environ.get(INTERFACE, "").split(",")):
        mistake = f"{INTERFACE}={name}: on {socket.gethostname()}"
        if name not in known:
            raise ValueError(f"{mistake}, there is no such interface, only {', '.join(sorted(known))}; unset it")
        if name.startswith("lo") and is_loopback(_ipv4_of(name)) and not all(is_loopback(each) for each in addresses):
            raise ValueError(f"{mistake}, other hosts can't be reached through this interface; unset it")


@contextmanager
def gloo_on(interface: str | None) -> Iterator[None]:
    """Let gloo use an interface, unless the user has chosen one.

    Without this, gloo takes the address that the host's own name has. On many systems that is a loopback address, which
    other hosts can't reach.
    """
    if interface is None or os.environ.get(INTERFACE):
        yield
        return
    os.environ[INTERFACE] = interface
    try:
        yield
    finally:
        del os.environ[INTERFACE]


def _interface_with(address: str) -> str | None:
    if sys.platform != "linux":
        return None
    if ":" in address:
        packed = socket.inet_pton(socket.AF_INET6, address.partition("%")[0]).hex()
        lines = IPV6_ADDRESSES.read_text(encoding="ascii").splitlines() if IPV6_ADDRESSES.exists() else []
        return next((fields[5] for line in lines if (fields := line.split())[0] == packed), None)
    for _, name in socket.if_nameindex():
        if _ipv4_of(name) == address:
            return name
    return None


def _ipv4_of(interface: str) -> str | None:
    """Return the first IPv4 address of an interface; see netdevice(7)."""
    import fcntl  # not on every system

    request = array.array("B", struct.pack("16s24x", interface.encode()[:15]))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked, suppress(OSError):
        fcntl.ioctl(asked, SIOCGIFADDR, request)
        return socket.inet_ntoa(request[20:24].tobytes())
    return None
