"""Prepares the standard streams, so that a closed stream, a gone reader or a small character set stops no command."""

import io
import os
import sys
from typing import Any, TextIO

MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}  # in the order of their descriptors


def prepare_streams() -> None:
    """Open standard streams that are closed, and make the others replace characters that they cannot encode.

    Output that standard error does not accept is dropped: the exit code still tells how the command ended.
    """
    for name, mode in MODES.items():
        stream = getattr(sys, name)
        if stream is None:  # closed by the shell with `>&-`
            # The lowest free descriptor is the stream's own. If it stayed free, the next opened file would get it,
            # and with it the text that a library or a signal handler writes to standard error.
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            opened = open(descriptor, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, opened)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            # A letter that the locale lacks, or a byte of a file name that is not UTF-8, becomes a question mark.
            stream.reconfigure(errors="replace")
    sys.stderr = _dropping(sys.stderr)


def outlive_reader() -> None:
    """Drop output that standard output no longer accepts, because its reader is gone or its disk is full.

    For commands whose results are files. Other commands stop when nobody reads their output.
    """
    sys.stdout = _dropping(sys.stdout)


def _dropping(stream: TextIO) -> TextIO:
    if type(stream) is not io.TextIOWrapper:  # a test's stream, which collects the output
        return stream
    stream.flush()
    raw = _DroppingFile(stream.fileno(), "w", closefd=False)
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        stream.encoding,
        stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


class _DroppingFile(io.FileIO):
    def write(self, content: Any) -> int:
        try:
            return super().write(content)
        except OSError:
            return memoryview(content).nbytes
