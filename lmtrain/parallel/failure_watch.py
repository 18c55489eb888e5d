"""Ends the collectives of a GPU when another process has failed; NCCL itself would wait for it until the timeout."""

import threading
from collections.abc import Callable

from lmtrain.parallel.peers import Peers

PERIOD_S = 2.0


class FailureWatch:
    """Asks regularly, in a thread, whether another process has failed, and then calls `end_collectives` once."""

    def __init__(self, peers: Peers, end_collectives: Callable[[], None], period_s: float = PERIOD_S) -> None:
        self._peers, self._end_collectives, self._period_s = peers, end_collectives, period_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="failure watch", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the watch, and wait until it has ended."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(self._period_s):
            if self._peers.failure() is not None:
                if not self._stopped.is_set():
                    self._end_collectives()
                return
