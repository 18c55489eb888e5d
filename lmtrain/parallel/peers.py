"""The store through which the processes of a run tell each other small texts, before and beside their collectives."""

import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from torch.distributed import PrefixStore, Store, TCPStore, rendezvous  # type: ignore[attr-defined]

from lmtrain.errors import ConfigError, LostRankError
from lmtrain.parallel.heartbeat import Listener, heartbeat, heartbeat_of
from lmtrain.parallel.waiting import saying_who_waits
from lmtrain.parallel.world import MASTER_ADDRESS, MASTER_PORT, STORE_SOCKET, World

T = TypeVar("T")

CONNECT_TIMEOUT_S = 300.0  # of a process that has been started until it has imported torch
START_TIMEOUT_S = 900.0  # of what takes no process long, unless it hangs
SILENCE_S = 300.0  # without a heartbeat; the default of `timeout_s`, which is not known from the beginning
LEAST_SILENCE_S = 15.0  # a busy machine may delay heartbeats
POLL_S = 0.1
ANSWER_TIMEOUT_S = 30.0  # of the store
LAST_ANSWER_S = 10.0  # the same after a failure, where the host with the store may be the one that does not answer
FAILURE_WAIT_S = 3.0  # a process that fails tells why before it ends
LAST_SAVE_S = 600.0  # the first process writes the last checkpoint
LAST_WORDS_S = 60.0  # the same after a failure, where the first process may be the one that does not answer
STORE_HAS_GONE = "the process that holds the connection has ended or does not answer"
LOST = (RuntimeError, OSError)  # the store has gone with the process that holds it, or the network between them has
ATTEMPT = "TORCHELASTIC_RESTART_COUNT"  # environment variable: how often torchrun has started this process again
KNOWS, RECORDED = "knows", "recorded"  # topics: a failure is known; the result of the run is written


class Peers:
    """The processes of a run, connected by a store.

    Each process can tell the others a text under its own rank, and read what another one has said. A process that waits
    for another one also listens to its heartbeat.

    Attributes:
        is_cut_off: Whether the store no longer answers, so that the others can't know what happens here.
        names: What to call each process in messages, by rank.
        silence_s: The time without a heartbeat after which a process counts as lost.
    """

    def __init__(self, world: World, store: Store) -> None:
        self.world, self.store = world, store
        self.silence_s = SILENCE_S
        self.is_cut_off = False
        self.names = [f"rank {rank}" for rank in range(world.size)]
        self._has_ended = False

    def tell(self, topic: str, content: Any) -> None:
        """Tell the others something that JSON can express.

        Raises:
            LostRankError: The process that holds the connection has ended.
        """
        try:
            self._set(f"{topic}/{self.world.rank}", content)
        except LOST as error:
            raise LostRankError(f"{self.world}: {STORE_HAS_GONE}", unheard=True) from error

    def set_timeout(self, seconds: float) -> None:
        """Set `parallel.timeout_s`, the seconds after which a process that does not answer ends the run."""
        self.silence_s = max(seconds, LEAST_SILENCE_S)

    def ask(self, topic: str, rank: int, timeout_s: float = START_TIMEOUT_S) -> Any:
        """Return what a process tells about a topic, and wait for it.

        `timeout_s` is infinity for what may take any time, such as preparing data. The heartbeat counts also then.

        Raises:
            LostRankError: The process has failed, does not tell anything in time, or shows no life.
        """
        key, end, listener = f"{topic}/{rank}", time.monotonic() + timeout_s, Listener(lambda: self._beats(rank))
        try:
            while not self._has([key], max(ANSWER_TIMEOUT_S, min(self.silence_s, end - time.monotonic()))):
                if (failure := self.failure()) is not None:
                    raise failure
                if time.monotonic() > end:
                    raise LostRankError(f"rank {rank} did not answer within {timeout_s:.0f} s")
                if rank != self.world.rank and listener.silence_s() > self.silence_s:
                    raise LostRankError(f"{self.names[rank]} has shown no life for {self.silence_s:.0f} s: it hangs")
                time.sleep(POLL_S)
            return self._get(key)
        except LostRankError:
            raise
        except LOST as error:
            raise LostRankError(f"{self.world}: {STORE_HAS_GONE}", unheard=True) from error

    def forget(self, topic: str, rank: int) -> None:
        """Remove what a process has said about a topic, which nobody will ask for again."""
        try:
            self._answered(lambda: self.store.delete_key(f"{topic}/{rank}"), ANSWER_TIMEOUT_S)
        except LOST as error:
            raise LostRankError(f"{self.world}: {STORE_HAS_GONE}", unheard=True) from error

    def ask_all(self, topic: str, timeout_s: float = START_TIMEOUT_S) -> list[Any]:
        """Return what every process tells about a topic, by rank."""
        return [self.ask(topic, rank, timeout_s) for rank in range(self.world.size)]

    def meet(self, topic: str) -> None:
        """Wait until all processes have come to a point, and notice if one of them fails before.

        Raises:
            LostRankError: A process has failed, or does not come in time.
        """
        self.exchange(topic, True)

    def exchange(self, topic: str, content: Any) -> list[Any]:
        """Tell the others something, and return what every process tells, by rank, once all have come to this point.

        Raises:
            LostRankError: A process has failed, or does not come in time.
        """
        self.tell(topic, content)
        return self.ask_all(topic)

    def fail(self, reason: str, trace: str = "") -> bool:
        """Tell the others why this process ends, unless another one failed earlier; return whether they can know it."""
        try:
            if not self._has(["failure"], LAST_ANSWER_S):
                self._set("failure", {"reason": f"{self.world}: {reason}", "traceback": trace}, LAST_ANSWER_S)
        except LOST:
            return False
        return True

    def failure(self, wait_s: float = 0.0) -> LostRankError | None:
        """Return which process failed first, where and why; None if none has said so within `wait_s` seconds."""
        end = time.monotonic() + wait_s
        while True:
            try:
                if self._has(["failure"], LAST_ANSWER_S):
                    failure = self._get("failure")
                    self.tell(KNOWS, True)
                    return LostRankError(failure["reason"], failure["traceback"])
            except LOST:
                return None
            if time.monotonic() >= end:
                return None
            time.sleep(POLL_S)

    def silent(self, wait_s: float = FAILURE_WAIT_S) -> list[str]:
        """Return the names of the other processes that do not say, after a failure, that they know of it."""
        others = [rank for rank in range(self.world.size) if rank != self.world.rank]
        try:
            self._wait([f"{KNOWS}/{rank}" for rank in others], wait_s)
            return [self.names[rank] for rank in others if not self._has([f"{KNOWS}/{rank}"], LAST_ANSWER_S)]
        except LOST:
            return []

    def end(self, timeout_s: float = LAST_SAVE_S) -> None:
        """End this process's part in the run; call this when everything is recorded, or to wait for that.

        The first process waits until all know of a failure, because the store may end with it. The others wait until
        the first has saved and recorded everything: where one process ends with an error, torchrun stops the others.
        Further calls do nothing.
        """
        if self._has_ended:
            return
        self._has_ended = True
        try:
            if self.world.is_first:
                self.tell(RECORDED, True)
                if self.failure() is not None:
                    self._wait([f"{KNOWS}/{rank}" for rank in range(self.world.size)], FAILURE_WAIT_S)
            else:
                self._wait([f"{RECORDED}/0"], timeout_s)
        except LOST:
            return

    def leave(self) -> None:
        """End this process's part without waiting for the first one, after a run that has completed."""
        self._has_ended = True

    def _wait(self, keys: list[str], timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        while not self._has(keys, max(LAST_ANSWER_S, end - time.monotonic())) and time.monotonic() < end:
            time.sleep(POLL_S)

    def _set(self, key: str, content: Any, timeout_s: float = ANSWER_TIMEOUT_S) -> None:
        self._answered(lambda: self.store.set(key, json.dumps(content)), timeout_s)

    def _has(self, keys: list[str], timeout_s: float) -> bool:
        return self._answered(lambda: self.store.check(keys), timeout_s)

    def _get(self, key: str) -> Any:
        return json.loads(self._answered(lambda: self.store.get(key), ANSWER_TIMEOUT_S))

    def _beats(self, rank: int) -> int | None:
        """Return how often the heart of a process has beaten."""
        key = heartbeat_of(rank)
        return int(self._get(key)) if self._has([key], ANSWER_TIMEOUT_S) else None

    def _answered(self, ask: Callable[[], T], timeout_s: float) -> T:
        """Return what the store answers.

        The timeouts of torch's store do not end its waiting for an answer from a host that has vanished. So a thread
        waits, which is left behind then.

        Raises:
            RuntimeError: The process that holds the store has ended.
            ConnectionError: The store does not answer in time, or did not earlier.
        """
        if self.is_cut_off:
            raise ConnectionError(STORE_HAS_GONE)
        answers: queue.SimpleQueue[tuple[T | None, Exception | None]] = queue.SimpleQueue()

        def wait() -> None:
            try:
                answers.put((ask(), None))
            except Exception as error:
                answers.put((None, error))

        threading.Thread(target=wait, daemon=True).start()
        try:
            answer, error = answers.get(timeout=timeout_s)
        except queue.Empty:
            self.is_cut_off = True
            raise ConnectionError(STORE_HAS_GONE) from None
        if error is not None:
            self.is_cut_off = isinstance(error, LOST)
            raise error
        return answer  # type: ignore[return-value]


def _store(world: World) -> Store:
    """Return the store at the address in the environment, once all processes have connected with it."""
    timeout = timedelta(seconds=CONNECT_TIMEOUT_S)
    listening = os.environ.pop(STORE_SOCKET, None)
    if listening is not None:
        host, port = (os.environ[name] for name in (MASTER_ADDRESS, MASTER_PORT))
        return TCPStore(host, int(port), world.size, True, timeout, master_listen_fd=int(listening))
    store: Store = next(rendezvous("env://", world.rank, world.size, timeout=timeout))[0]
    return store


@contextmanager
def connected(world: World) -> Iterator[Peers]:
    """Connect this process with the others of the run, at the address in the environment.

    Raises:
        ConfigError: The others can't be reached.
    """
    try:
        with saying_who_waits(world):
            store = _store(world)
    except (RuntimeError, OSError, ValueError) as error:
        address = ":".join(os.environ.get(name, "?") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise ConfigError(f"{world}: can't reach the other processes at {address}: {error}") from error
    store.set_timeout(timedelta(seconds=ANSWER_TIMEOUT_S))
    # torchrun may keep its store when it starts the processes again, with what the earlier ones have said.
    peers = Peers(world, PrefixStore(f"attempt {os.environ.get(ATTEMPT, '0')}", store))
    try:
        with heartbeat(peers.store, world.rank):
            yield peers
    except Exception as error:
        if not isinstance(error, LostRankError):
            peers.fail(str(error))
        raise
    finally:
        peers.end()
