"""Checks that end in every way in which a check can end, for the tests of the processes that run them."""

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

from lmtrain.verify.device.finding import Finding, judged


def passes(setting: Any) -> Iterator[Finding]:
    yield judged(True, "first", "a", number=1)
    yield judged(True, "second", "b")


def fails(setting: Any) -> Iterator[Finding]:
    yield judged(False, "the number is 2, not 1")


def raises(setting: Any) -> Iterator[Finding]:
    yield judged(True, "before")
    raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")


def is_killed(setting: Any) -> Iterator[Finding]:
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    yield


def hangs(setting: Any) -> Iterator[Finding]:
    yield judged(True, "before")
    time.sleep(600)
