"""Tells the other processes of a run that this one lives, while it may not answer for long: it prepares data."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.distributed import Store  # type: ignore[attr-defined]

BEAT_S = 1.0
READ_S = 1.0  # between two looks at another process
LAST_BEAT_S = 1.0


@contextmanager
def heartbeat(store: Store, rank: int) -> Iterator[None]:
    """Count under the name of this process in the store, in a thread."""
    over = threading.Event()

    def beat() -> None:
        count = 0
        while not over.is_set():
            count += 1
            try:
                store.set(heartbeat_of(rank), str(count))
            except (RuntimeError, OSError):  # the store has gone with the process that holds it
                return
            over.wait(BEAT_S)

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(LAST_BEAT_S)


class Listener:
    """Listens to the heartbeat of another process; `beats` returns how often its heart has beaten, if it has."""

    def __init__(self, beats: Callable[[], int | None]) -> None:
        self.beats = beats
        self._count: int | None = None
        self._heard = time.monotonic()
        self._looked = 0.0

    def silence_s(self) -> float:
        """Return for how many seconds the process has not been heard; call this more often than it beats."""
        now = time.monotonic()
        if now - self._looked >= READ_S:
            self._looked = now
            count = self.beats()
            if count != self._count:
                self._count, self._heard = count, now
        return now - self._heard


def heartbeat_of(rank: int) -> str:
    """Return the key in the store under which a process counts."""
    return f"heartbeat/{rank}"
