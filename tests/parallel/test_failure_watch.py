"""A failure of another process ends what this one waits for."""

import threading
import time

from torch.distributed import HashStore  # type: ignore[attr-defined]

from lmtrain.parallel.failure_watch import FailureWatch
from lmtrain.parallel.peers import Peers
from lmtrain.parallel.world import World


def test_a_failure_ends_the_collectives_once() -> None:
    store = HashStore()
    ended, calls = threading.Event(), []

    def end() -> None:
        calls.append(time.monotonic())
        ended.set()

    watch = FailureWatch(Peers(World(0, 2, 0), store), end, period_s=0.02)
    assert not ended.wait(0.2)
    Peers(World(1, 2, 1), store).fail("no memory")
    assert ended.wait(30)
    watch.stop()
    assert len(calls) == 1


def test_a_watch_that_has_stopped_ends_nothing() -> None:
    store = HashStore()
    ended = threading.Event()
    watch = FailureWatch(Peers(World(0, 2, 0), store), ended.set, period_s=0.02)
    watch.stop()
    Peers(World(1, 2, 1), store).fail("no memory")
    assert not ended.wait(0.2)
