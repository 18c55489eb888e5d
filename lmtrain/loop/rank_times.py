"""Measures how long each process of a run works for a step, without its waiting for the others, to find slow ones."""

import logging
import socket
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import torch

from lmtrain.parallel.base import Parallel

log = logging.getLogger(__name__)

SLOW = 1.3  # a rank is slow if it works longer than this many times the median of the others,
NOTABLE = 0.05  # and by more than this share of a step
INTERVALS = 3  # logged intervals in a row; in a single one, anything may have disturbed a rank

Moment = torch.cuda.Event | float


class RankTimes:
    """Measures the own work of this process in the steps since the last metrics, and compares it with the others.

    All processes end a step together, so the time of a step says nothing about a single one. Own work is what comes
    before the first wait: loading the data, and computing the micro-batches up to the last forward. The last backward
    already sends gradients. On a GPU, events in its queue measure the computation, and nothing waits for them.

    Where the processes share the model, forwards wait for the others too, and only loading counts.
    """

    def __init__(self, parallel: Parallel, device: torch.device) -> None:
        self.parallel, self.device = parallel, device
        self.measures = parallel.world.size > 1
        self._computes_alone = not parallel.shares_model
        self._seconds, self._steps, self._since = 0.0, 0, time.perf_counter()
        self._began: Moment | None = None
        self._pending: deque[tuple[Moment, Moment]] = deque()  # on a GPU: not over yet
        self._hosts: list[str] = []
        self._slow: tuple[int, int] = (0, 0)  # the slowest rank, and for how many intervals it was slow
        self._reported: set[int] = set()

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Measure the time in which this process waits for its own data."""
        began = time.perf_counter()
        yield
        self._seconds += time.perf_counter() - began

    def begin(self) -> None:
        """Note that the computation of a step begins."""
        if self.measures:
            self._steps += 1
            self._began = self._now() if self._computes_alone else None

    def end(self) -> None:
        """Note that the next thing in the step needs the other processes."""
        if self._began is not None:
            self._pending.append((self._began, self._now()))
            self._began = None
            self._add_finished(wait=False)

    def metrics(self) -> dict[str, float]:
        """Return the times per step of the slowest and the fastest rank; all processes must call this together.

        Call it where the device has finished the steps.
        """
        if not self.measures or not self._steps:
            return {}
        self._add_finished(wait=True)
        own = torch.tensor([1000 * self._seconds / self._steps], dtype=torch.float64)
        now = time.perf_counter()
        step_ms = 1000 * (now - self._since) / self._steps
        self._seconds, self._steps, self._since = 0.0, 0, now
        self._hosts = self._hosts or self.parallel.every(socket.gethostname())
        times = [each["ms"].item() for each in self.parallel.gathered({"ms": own})]
        slowest = max(range(len(times)), key=times.__getitem__)
        metrics = {"ranks/slowest_ms": times[slowest], "ranks/fastest_ms": min(times), "ranks/slowest": slowest}
        self._report(slowest, times, step_ms)
        return metrics

    def _report(self, slowest: int, times: list[float], step_ms: float) -> None:
        """Warn once of a rank that is slow in several intervals in a row."""
        usual = median(times[:slowest] + times[slowest + 1 :])
        before, intervals = self._slow
        is_slow = times[slowest] > max(SLOW * usual, usual + NOTABLE * step_ms)
        self._slow = (slowest, (intervals if slowest == before else 0) + 1) if is_slow else (slowest, 0)
        if self._slow[1] == INTERVALS and slowest not in self._reported:
            self._reported.add(slowest)
            log.warning(
                "rank %d on %s is slow: it works %.3g ms for a step, and the median of the others is %.3g ms; they "
                "wait for it",
                slowest,
                self._hosts[slowest],
                times[slowest],
                usual,
            )

    def _now(self) -> Moment:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _add_finished(self, *, wait: bool) -> None:
        while self._pending:
            began, ended = self._pending[0]
            if isinstance(began, float) and isinstance(ended, float):
                self._seconds += ended - began
            else:
                assert isinstance(began, torch.cuda.Event)
                assert isinstance(ended, torch.cuda.Event)
                if wait:
                    ended.synchronize()
                elif not ended.query():  # type: ignore[no-untyped-call]
                    return
                self._seconds += began.elapsed_time(ended) / 1000
            self._pending.popleft()
