"""Loads micro-batches in a thread during the training step, and copies them to the device."""

import itertools
import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import NamedTuple, Self

import torch

from lmtrain.data.loader import IGNORE, Batch


class MicroBatch(NamedTuple):
    """Inputs and targets (B, T) on the device, and how many targets count, known without asking the device."""

    x: torch.Tensor
    y: torch.Tensor
    n_targets: int

    @classmethod
    def of(cls, x: torch.Tensor, y: torch.Tensor, *, pin: bool) -> Self:
        """Return a micro-batch of CPU tensors, in pinned memory if `pin` is set."""
        n_targets = int(torch.count_nonzero(y != IGNORE))
        return cls(x.pin_memory(), y.pin_memory(), n_targets) if pin else cls(x, y, n_targets)

    def cut(self, length: int) -> "MicroBatch":
        """Return the same tokens and targets, in the same order, as shorter sequences (B · T / length, length)."""
        return MicroBatch(self.x.reshape(-1, length), self.y.reshape(-1, length), self.n_targets)

    def to(self, device: torch.device) -> "MicroBatch":
        """Start the copy to a device. The host does not wait for it if the memory is pinned."""
        if device.type == "cpu":
            return self
        return MicroBatch(self.x.to(device, non_blocking=True), self.y.to(device, non_blocking=True), self.n_targets)


class Prefetcher:
    """Yields `batch(start)`, `batch(start + stride)`, … on the device; a thread makes up to `depth` of them ahead.

    On CUDA the thread pins the memory and the copy does not block. An error in `batch` is raised by the `next`
    that would have returned its result. Use it as a context manager: leaving the context stops the thread.
    """

    def __init__(
        self, batch: Callable[[int], Batch], start: int, device: torch.device, depth: int = 8, stride: int = 1
    ) -> None:
        self._device, self._stride = device, stride
        self._queue: queue.Queue[MicroBatch | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(batch, start), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> MicroBatch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # the thread has stopped: a caller that asks again gets the same error
            raise item
        return item.to(self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():  # it may be waiting for a free place in the queue
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(timeout=0.05)

    def _work(self, batch: Callable[[int], Batch], start: int) -> None:
        try:
            for index in itertools.count(start, self._stride):
                if self._stop.is_set():
                    return
                self._queue.put(MicroBatch.of(*batch(index), pin=self._device.type == "cuda"))
        except BaseException as error:
            self._queue.put(error)
