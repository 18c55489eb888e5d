"""The standard streams, so that none of them ends a command: closed, without a reader, or of few characters."""

import io
import os
import sys
from typing import Any, TextIO

MODES = {"stdin": "r", "stdout": "w", "stderr": "w"}  # in the order of their descriptors


def prepare_streams() -> None:
    """Open the streams that the command was started without, and make the others replace what they cannot show.

    What standard error does not take is dropped: the exit code says how the command ended.
    """
    for name, mode in MODES.items():
        stream = getattr(sys, name)
        if stream is None:  # `>&-`
            # Takes the lowest free descriptor, which is the stream's own. Otherwise the next file that is opened would
            # take it, and get what a library or a handler of signals writes to standard error.
            descriptor = os.open(os.devnull, os.O_RDWR)
            os.set_inheritable(descriptor, True)
            opened = open(descriptor, mode, encoding="utf-8", errors="replace", closefd=False)  # noqa: SIM115
            setattr(sys, name, opened)
        elif mode == "w" and isinstance(stream, io.TextIOWrapper):
            # A letter that the locale lacks, or a byte of a file's name that is no UTF-8, becomes a question mark.
            stream.reconfigure(errors="replace")
    sys.stderr = _dropping(sys.stderr)


def outlive_reader() -> None:
    """From now on, drop what standard output does not take: the reader or the terminal is gone, or there is no space.

    For commands whose result is in files. Others end when nobody reads any more.
    """
    sys.stdout = _dropping(sys.stdout)


def _dropping(stream: TextIO) -> TextIO:
    if type(stream) is not io.TextIOWrapper:  # of a test, which collects what is printed
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
