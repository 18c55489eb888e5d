"""Makes file modes apply to root, too, since root may run the tests."""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

VERSION = 0x20080522  # linux/capability.h
DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2


@contextmanager
def modes_that_hold() -> Iterator[None]:
    """Remove from this thread the capabilities that let root read and write any file."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION, 0)
    before = (ctypes.c_uint32 * 6)()  # effective, permitted and inheritable capabilities, in two halves
    assert libc.capget(header, before) == 0
    fewer = (ctypes.c_uint32 * 6)(*before)
    fewer[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, fewer) == 0
    try:
        yield
    finally:
        assert libc.capset(header, before) == 0
