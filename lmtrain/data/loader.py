"""Batches from a token file: a pure function of the micro-batch's index, prepared ahead on a thread."""

import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import NonNegativeInt, PositiveInt

from lmtrain.data.order import ORDERS, blocks
from lmtrain.data.tokens import fingerprint, open_tokens, read_meta

IGNORE = -100  # a target that no loss counts, as in torch.nn.functional.cross_entropy
ORDER_CHUNK = 4096  # samples at most whose order is computed at once: 0.3 µs each, against 90 µs for a call


class TokenLoader:
    """Samples of `block_size` tokens and the same shifted by one, from `<path>/<split>.bin`.

    Sample `s` is row `s % batch_size` of batch `s // batch_size`, whatever the batch size: the same global batch
    cut into other micro-batches holds the same samples.

    Raises:
        ValueError: the split is missing, damaged, or has not one block of block_size + 1 tokens.
    """

    def __init__(
        self,
        path: str,
        split: str,
        batch_size: PositiveInt,
        block_size: PositiveInt,
        seed: NonNegativeInt,
        order: Literal["shuffle", "random", "sequential"] = "shuffle",
    ) -> None:
        folder = Path(path)
        self.path, self.split, self.batch_size, self.block_size, self.seed = folder, split, batch_size, block_size, seed
        self.tokens = open_tokens(folder, split)
        self.meta = read_meta(folder)
        self.order = ORDERS[order]
        self.blocks = blocks(len(self.tokens), block_size)
        if self.blocks < 1:
            raise ValueError(
                f"data.block_size={block_size}: {folder / f'{split}.bin'} has {len(self.tokens):,} tokens, "
                f"too few for one block and its targets; at most {len(self.tokens) - 1}"
            )
        # Short epochs have orders of their own, each of which takes a call.
        self._chunk = min(ORDER_CHUNK, max(self.blocks, batch_size))
        # Row i is the window that starts at token i: a view, so a batch is one gather.
        self._windows = np.lib.stride_tricks.sliding_window_view(self.tokens, block_size + 1)
        self._offsets: tuple[int, npt.NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of source text a token of this split stands for; None where the folder has no `meta.json`."""
        split = self.meta.splits[self.split] if self.meta else None
        return split.bytes / split.tokens if split else None

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.path, self.split)

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Micro-batch `index` ≥ 0: x and y, int64 (B, T) on the CPU."""
        first = index * self.batch_size
        windows = self._windows[self._sample_offsets(first, self.batch_size)]  # (B, T + 1)
        return torch.from_numpy(windows[:, :-1].astype(np.int64)), torch.from_numpy(windows[:, 1:].astype(np.int64))

    def whole_split(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Every target token of the split once, in file order.

        All batches are (B, T), so that a compiled model is compiled once; where the last block is short or the last
        batch not full, the targets left over are IGNORE.
        """
        targets = len(self.tokens) - 1
        for start in range(0, targets, self.batch_size * self.block_size):
            span = np.asarray(self.tokens[start : start + self.batch_size * self.block_size + 1], dtype=np.int64)
            x = np.zeros(self.batch_size * self.block_size, np.int64)
            y = np.full_like(x, IGNORE)
            x[: len(span) - 1], y[: len(span) - 1] = span[:-1], span[1:]
            shape = (self.batch_size, self.block_size)
            yield torch.from_numpy(x.reshape(shape)), torch.from_numpy(y.reshape(shape))

    def _sample_offsets(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Token offsets of consecutive samples; the chunk of the order they lie in is kept for the next call."""
        parts = []
        while count:
            chunk, start = divmod(first, self._chunk)
            number, offsets = self._offsets  # read once: another thread may put its own chunk there
            if number != chunk:
                offsets = self.order(
                    chunk * self._chunk,
                    self._chunk,
                    tokens=len(self.tokens),
                    block_size=self.block_size,
                    seed=self.seed,
                    stream=self.split,
                )
                self._offsets = (chunk, offsets)
            part = offsets[start : start + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


class MicroBatch(NamedTuple):
    """Inputs and targets (B, T) on the device, and how many of the targets count, known without asking the device."""

    x: torch.Tensor
    y: torch.Tensor
    targets: int


Batches = Callable[[int], tuple[torch.Tensor, torch.Tensor]]


class Prefetcher:
    """Yields `batch(start)`, `batch(start + 1)`, … made by a thread up to `depth` ahead and moved to the device.

    On CUDA the thread pins the memory and the copy does not block. An error in `batch` is raised by the `next`
    that would have returned its result. Use it as a context manager: leaving it ends the thread.
    """

    def __init__(self, batch: Batches, start: int, device: torch.device, depth: int = 8) -> None:
        self._device = device
        self._queue: queue.Queue[MicroBatch | BaseException] = queue.Queue(depth)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(batch, start), name="prefetch", daemon=True)
        self._thread.start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> MicroBatch:
        item = self._queue.get()
        if isinstance(item, BaseException):
            self._queue.put(item)  # the thread has ended: whoever asks again shall hear the same
            raise item
        return on_device(item, self._device)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        while self._thread.is_alive():  # it may wait for a free place in the queue
            while not self._queue.empty():
                self._queue.get_nowait()
            self._thread.join(timeout=0.05)

    def _work(self, batch: Batches, start: int) -> None:
        try:
            for index in itertools.count(start):
                if self._stop.is_set():
                    return
                self._queue.put(micro_batch(*batch(index), pin=self._device.type == "cuda"))
        except BaseException as error:
            self._queue.put(error)


def micro_batch(x: torch.Tensor, y: torch.Tensor, *, pin: bool) -> MicroBatch:
    """Counts the targets while they are still on the CPU."""
    targets = int(torch.count_nonzero(y != IGNORE))
    return MicroBatch(x.pin_memory(), y.pin_memory(), targets) if pin else MicroBatch(x, y, targets)


def on_device(item: MicroBatch, device: torch.device) -> MicroBatch:
    """Starts the copy; the host does not wait for it where the memory is pinned."""
    if device.type == "cpu":
        return item
    return MicroBatch(item.x.to(device, non_blocking=True), item.y.to(device, non_blocking=True), item.targets)
