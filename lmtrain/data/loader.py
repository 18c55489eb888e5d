"""Loads batches from token files. Each batch is a pure function of the micro-batch's index."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from pydantic import NonNegativeInt, PositiveInt

from lmtrain.data.meta import Meta, Tokens
from lmtrain.data.order import ORDERS, block_count, evenly_spaced
from lmtrain.data.token_files import TokenFiles
from lmtrain.data.token_type import TokenType
from lmtrain.errors import DataError
from lmtrain.machine import total_memory
from lmtrain.terminal.units import counted

IGNORE = -100  # a target that the loss does not count, as in torch.nn.functional.cross_entropy
READ_BYTES = 128 << 10
WHOLE_SPLIT, EVENLY_SPACED = "whole split", "evenly spaced"  # how the tokens of an evaluation are selected
ORDER_CHUNK = 4096  # the most samples whose order is computed in one call: 90 µs per call, 0.3 µs per sample

Batch = tuple[torch.Tensor, torch.Tensor]
Batches = Iterator[Batch]


class Samples:
    """The numbered samples of one split of one folder: windows of block_size + 1 tokens, in the given order.

    The order depends on the seed and on the name `stream`. An id at or above `vocab_size` is an error (None: the
    vocabulary size in `meta.json`). `dtype` is the type of bare files, as in `TokenFiles`.

    Raises:
        DataError: the split is missing, damaged, or shorter than one block of block_size + 1 tokens.
    """

    def __init__(
        self,
        folder: Path,
        split: str,
        block_size: int,
        seed: int,
        order: str,
        stream: str,
        vocab_size: int | None,
        dtype: TokenType | None = None,
    ) -> None:
        self.block_size, self.seed, self.stream = block_size, seed, stream
        self.tokens = TokenFiles(folder, split, dtype)
        self.meta = self.tokens.meta
        self.vocab_size = vocab_size or (self.meta.vocab_size if self.meta else None)
        self.order = ORDERS[order]
        self.blocks = block_count(len(self.tokens), block_size)
        if self.blocks < 1:
            raise DataError(
                f"data.block_size={block_size}: {folder / split}.bin has {counted(len(self.tokens), 'token')}, "
                f"too few for one block and its targets; the block size can be at most {len(self.tokens) - 1}"
            )
        self._offsets: tuple[int, npt.NDArray[np.int64]] = (0, np.empty(0, np.int64))
        self._ready: tuple[int, Tokens] = (0, np.empty((0, block_size + 1), self.tokens.dtype))

    def windows(self, first: int, count: int) -> Tokens:
        """Return samples first … first+count-1 as a read-only array, (count, block_size + 1).

        Raises:
            DataError: an id is too large (the message names the file and the position), or a file became shorter.
        """
        start, ready = self._ready  # read once: another thread may replace it
        if not (start <= first and first + count <= start + len(ready)):
            # Several small batches are read at once, because a call costs as much as a few rows.
            calls = max(1, READ_BYTES // (count * (self.block_size + 1) * self.tokens.dtype.itemsize))
            start, ready = first, self._checked_windows(first, count, calls * count)
            self._ready = start, ready
        return ready[first - start : first - start + count]

    def _checked_windows(self, first: int, needed: int, count: int) -> Tokens:
        """Return `count` samples, or only the `needed` first ones if a later one has an id that is too large."""
        return self._windows_at(self._sample_offsets(first, count), needed)

    def spaced_windows(self, numbers: npt.NDArray[np.int64], count: int) -> Tokens:
        """Return some of the windows of `count` blocks that are evenly spaced over the split, (len(numbers), T + 1).

        They depend only on the length of the split, the block size and `count`, not on the seed. If `count` is larger
        than the number of blocks, blocks are repeated equally often, to within one.
        """
        return self._windows_at(evenly_spaced(numbers, count, self.blocks) * self.block_size, len(numbers))

    def _windows_at(self, offsets: npt.NDArray[np.int64], needed: int) -> Tokens:
        """Return the windows at the offsets, or only the `needed` first ones if a later one has a too large id."""
        windows = self.tokens.windows(offsets, self.block_size + 1)
        if self.vocab_size is not None and windows.max() >= self.vocab_size:
            windows = windows[:needed]
            if windows.max() >= self.vocab_size:
                row, column = np.argwhere(windows >= self.vocab_size)[0]
                self._refuse(windows[row, column], int(offsets[row] + column))
        return windows

    def locate_samples(self, first: int, count: int) -> list[tuple[Path, int]]:
        """Return the file and the number of the first token there, for each of samples first … first+count-1."""
        return [self.tokens.locate_token(int(offset)) for offset in self._sample_offsets(first, count)]

    def whole_split(self, batch_size: int) -> Batches:
        """Yield every target token of the split once, in file order.

        All batches are (B, T), so that the model is compiled only once. If the last block is short or the last batch is
        not full, the remaining targets are IGNORE.
        """
        batch_tokens = batch_size * self.block_size
        for start in range(0, len(self.tokens) - 1, batch_tokens):
            span = self.tokens.span(start, start + batch_tokens + 1)
            if self.vocab_size is not None and span.max() >= self.vocab_size:
                too_large = int(np.argmax(span >= self.vocab_size))
                self._refuse(span[too_large], start + too_large)
            x = np.zeros(batch_tokens, np.int64)
            y = np.full_like(x, IGNORE)
            x[: len(span) - 1], y[: len(span) - 1] = span[:-1], span[1:]
            shape = (batch_size, self.block_size)
            yield torch.from_numpy(x.reshape(shape)), torch.from_numpy(y.reshape(shape))

    def _refuse(self, token: int, position: int) -> NoReturn:
        path, number = self.tokens.locate_token(position)
        raise DataError(f"{path}: token {number:,} is {token}, not below the vocabulary size of {self.vocab_size:,}")

    def _sample_offsets(self, first: int, count: int) -> npt.NDArray[np.int64]:
        """Return the token offsets of consecutive samples; keep their chunk of the order for the next call."""
        # Each epoch has its own order and needs its own call, so a chunk is no longer than a short epoch.
        size = min(ORDER_CHUNK, max(self.blocks, count))
        parts = []
        while count:
            start, offsets = self._offsets  # read once: another thread may replace it
            if not start <= first < start + len(offsets):
                start = first
                offsets = self.order(
                    start,
                    size,
                    tokens=len(self.tokens),
                    block_size=self.block_size,
                    seed=self.seed,
                    stream=self.stream,
                )
                self._offsets = (start, offsets)
                self.tokens.release()
            part = offsets[first - start : first - start + count]
            parts.append(part)
            first, count = first + len(part), count - len(part)
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def check_batch_fits(batch_size: int, block_size: int) -> None:
    """Raise ValueError if the ids and targets of a micro-batch, 8 bytes each, need more than this machine's memory."""
    if (needed := 16 * batch_size * block_size) > total_memory():
        raise ValueError(
            f"data.batch_size={batch_size}: the token ids of one batch need {needed / 1e9:,.0f} GB, more than this "
            "machine's memory; choose a smaller batch"
        )


class TokenLoader:
    """Loads batches of inputs, and of targets that are one token later, from a split of a folder of token files.

    Sample `s` is row `s % batch_size` of batch `s // batch_size`, for every batch size. So a global batch contains the
    same samples however it is divided into micro-batches or among ranks.

    Args:
        path: The folder of token files.
        split: The split to read, `train` or `val`.
        batch_size: Sequences per micro-batch.
        block_size: Tokens per sequence.
        seed: The seed of the order.
        order: `shuffle` visits every block once per epoch, in a new pseudo-random order; `random` draws offsets with
            replacement; `sequential` reads the blocks in file order.
        vocab_size: An id at or above it is an error when it is read. null: the vocabulary size in `meta.json`.
        dtype: The number type of files without `meta.json` or header. null: uint16, unless they look like another type.

    Raises:
        DataError: the split is missing, damaged, of another type, or shorter than one block of block_size + 1 tokens.
            Reading also raises it for an id that is too large or a file that became shorter.
    """

    def __init__(
        self,
        path: str,
        split: str,
        batch_size: PositiveInt,
        block_size: PositiveInt,
        seed: NonNegativeInt,
        order: Literal["shuffle", "random", "sequential"] = "shuffle",
        vocab_size: PositiveInt | None = None,
        dtype: Literal["uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64"] | None = None,
    ) -> None:
        check_batch_fits(batch_size, block_size)
        self.path, self.split, self.batch_size, self.block_size, self.seed = path, split, batch_size, block_size, seed
        self.max_samples: int | None = None  # no limit: each epoch starts over
        self.samples = Samples(Path(path), split, block_size, seed, order, split, vocab_size, dtype)

    @property
    def total_tokens(self) -> int:
        return len(self.samples.tokens)

    @property
    def bytes_per_token(self) -> float | None:
        """Return the UTF-8 bytes of source text per token of this split; None if the folder has no `meta.json`.

        Text that the tokenizer lost does not count.
        """
        split = self.samples.meta.splits[self.split] if self.samples.meta else None
        return split.kept_bytes / split.tokens if split else None

    @property
    def sampled_bytes_per_token(self) -> float | None:
        """Return the bytes per token of the samples that `batch` returns; here the same as `bytes_per_token`."""
        return self.bytes_per_token

    @property
    def metas(self) -> list[Meta | None]:
        """Return the contents of the `meta.json` of each folder; None for a folder without one."""
        return [self.samples.meta]

    @property
    def fingerprint(self) -> str:
        """Return a text that changes with the split's contents."""
        return self.samples.tokens.fingerprint

    @property
    def file_stamps(self) -> dict[str, list[int]]:
        """Return the stamps of the files, which show quickly that no file has changed; see `TokenFiles.file_stamps`."""
        return self.samples.tokens.file_stamps

    def check_contents(self) -> bool:
        """Compare the files with their checksums; return False if there are none.

        Raises:
            DataError: a file differs.
        """
        return self.samples.tokens.check_contents()

    def epochs(self, samples: int) -> Mapping[str, float]:
        """Return how many times the data has been seen after `samples` samples."""
        return {self.path: samples / self.samples.blocks}

    def batch(self, index: int) -> Batch:
        """Return micro-batch `index` ≥ 0: inputs and targets, int64 (B, T) on the CPU."""
        return inputs_and_targets(self.samples.windows(index * self.batch_size, self.batch_size))

    def locate_batch(self, index: int) -> list[tuple[Path, int]]:
        """Return each sample's file and the number of its first token there, for micro-batch `index`."""
        return self.samples.locate_samples(index * self.batch_size, self.batch_size)

    def whole_split(self) -> Batches:
        """Return every target token of the split once, in file order; see `Samples.whole_split`."""
        return self.samples.whole_split(self.batch_size)

    def spaced_blocks(self, sequences: int) -> Batches:
        """Return that many blocks, evenly spaced over the whole split, in file order; with few blocks, the whole split.

        They are the same blocks for every seed and batch size. All batches are (B, T); see `spaced_batches`.
        """
        if sequences >= self.samples.blocks:
            return self.whole_split()
        read = self.samples
        return spaced_batches(lambda numbers: read.spaced_windows(numbers, sequences), sequences, self.batch_size)

    def measured(self, sequences: int | None) -> dict[str, Any]:
        """Describe which target tokens an evaluation of so many sequences reads; None means the whole split."""
        if sequences is None or sequences >= self.samples.blocks:
            return {"selection": WHOLE_SPLIT, "tokens": self.total_tokens - 1}
        return {"selection": EVENLY_SPACED, "tokens": sequences * self.block_size}


def spaced_batches(windows: Callable[[npt.NDArray[np.int64]], Tokens], sequences: int, batch_size: int) -> Batches:
    """Yield the windows with the numbers 0 … sequences-1 in batches (B, T).

    If the last batch is not full, its remaining targets are IGNORE, so that the model is compiled only once.
    """
    for first in range(0, sequences, batch_size):
        x, y = inputs_and_targets(windows(np.arange(first, min(first + batch_size, sequences))))
        if missing := batch_size - len(x):
            x = torch.cat([x, x.new_zeros(missing, x.shape[1])])
            y = torch.cat([y, y.new_full((missing, y.shape[1]), IGNORE)])
        yield x, y


def inputs_and_targets(windows: Tokens) -> Batch:
    """Return windows (B, T + 1) as inputs and targets, each (B, T)."""
    return torch.from_numpy(windows[:, :-1].astype(np.int64)), torch.from_numpy(windows[:, 1:].astype(np.int64))
