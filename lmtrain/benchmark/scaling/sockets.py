"""Counts the bytes that this process has sent over its TCP connections, as the kernel knows them."""

import contextlib
import os
import socket
import struct
import sys

# Offsets in Linux's `struct tcp_info` (include/uapi/linux/tcp.h, since 4.19) of tcpi_bytes_sent, tcpi_bytes_retrans.
SENT_AND_SENT_AGAIN = struct.Struct("=200xQQ")


def sent_bytes() -> int | None:
    """Return the bytes that the open TCP connections of this process have sent once; None where no kernel tells.

    Connections to processes of the same machine count too. Those that the process has closed don't.
    """
    if sys.platform != "linux":
        return None
    total = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # closed in the meantime, or a socket of another kind
            if not os.readlink(f"/proc/self/fd/{name}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(name))) as connection:
                info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, SENT_AND_SENT_AGAIN.size)
            if len(info) < SENT_AND_SENT_AGAIN.size:
                return None
            sent, again = SENT_AND_SENT_AGAIN.unpack(info)
            total += sent - again
    return total
