"""Lets a command that has started processes end them when it is stopped by a signal."""

import contextlib
import signal
import sys
from collections.abc import Iterator

from lmtrain.errors import TERMINATED
from lmtrain.loop.stop_request import signals_to_handle


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Turn stop signals into exceptions, so that started processes end and written files are removed.

    Python does this for SIGINT already.
    """
    numbers = [number for number in signals_to_handle() if number != signal.SIGINT]
    previous = {number: signal.signal(number, lambda *_: sys.exit(TERMINATED.exit_code)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
