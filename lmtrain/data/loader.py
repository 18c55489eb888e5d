"""Batches from token files: a pure function of the micro-batch's index."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
import numpy.typing as npt
import torch
from pydantic import NonNegativeInt, PositiveInt

from lmtrain.data.meta import Tokens
from lmtrain.data.order import ORDERS, block_count
from lmtrain.data.token_files import TokenFiles
from lmtrain.data.token_type import TokenType
from lmtrain.errors import DataError
from lmtrain.machine import total_memory

IGNORE = -100  # a target that no loss counts, as in torch.nn.functional.cross_entropy
READ_BYTES = 128 << 10
ORDER_CHUNK = 4096  # samples at most whose order is computed at once: 0.3 µs each, against 90 µs for a call

Batch = tuple[torch.Tensor, torch.Tensor]
Batches = Iterator[Batch]


class Samples:
    """Samples of one split of one folder, by number: windows of block_size + 1 tokens, in the order of `order`.

    `stream` names the order beside the seed. An id of `vocab_size` or above is refused (None: what `meta.json` says).
    `dtype` is the type of bare files, as in `TokenFiles`.

    Raises:
        DataError: the split is missing, damaged, or has not one block of block_size + 1 tokens.
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
                f"data.block_size={block_size}: {folder / split}.bin has {len(self.tokens):,} tokens, "
                f"too few for one block and its targets; at most {len(self.tokens) - 1}"
            )
        self._offsets: tuple[int, npt.NDArray[np.int64]] = (0, np.empty(0, np.int64))
        self._ready: tuple[int, Tokens] = (0, np.empty((0, block_size + 1), self.tokens.dtype))

    def windows(self, first: int, count: int) -> Tokens:
        """Return samples first … first+count-1, not to be written to: (count, block_size + 1).

        Raises:
            DataError: an id that is too large, named with file and position; a file that became shorter.
        """
        start, ready = self._ready  # read once: another thread may put its own there
        if not (start <= first and first + count <= start + len(ready)):
            # Small batches are read several at once, as a call costs as much as a few rows.
            calls = max(1, READ_BYTES // (count * (self.block_size + 1) * self.tokens.dtype.itemsize))
            start, ready = first, self._checked_windows(first, count, calls * count)
            self._ready = start, ready
        return ready[first - start : first - start + count]

    def _checked_windows(self, first: int, needed: int, count: int) -> Tokens:
        """Return as many of `count` samples as are in order, at least `needed`."""
        offsets = self._sample_offsets(first, count)
        windows = self.tokens.windows(offsets, self.block_size + 1)
        if self.vocab_size is not None and windows.max() >= self.vocab_size:
            windows = windows[:needed]
            if windows.max() >= self.vocab_size:
                row, column = np.argwhere(windows >= self.vocab_size)[0]
                self._refuse(windows[row, column], int(offsets[row] + column))
        return windows

    def locate_samples(self, first: int, count: int) -> list[tuple[Path, int]]:
        """Return, for samples first … first+count-1, the file each begins in and the number of its first token."""
        return [self.tokens.locate_token(int(offset)) for offset in self._sample_offsets(first, count)]

    def whole_split(self, batch_size: int) -> Batches:
        """Yield every target token of the split once, in file order.

        All batches are (B, T), so that a compiled model is compiled once; where the last block is short or the last
        batch not full, the targets left over are IGNORE.
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
        """Return token offsets of consecutive samples; keep their chunk of the order for the next call."""
        # Short epochs have orders of their own, each of which takes a call.
        size = min(ORDER_CHUNK, max(self.blocks, count))
        parts = []
        while count:
            start, offsets = self._offsets  # read once: another thread may put its own chunk there
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
    """Raise ValueError if the ids and targets of a micro-batch, of 8 bytes each, need more than this machine has."""
    if (needed := 16 * batch_size * block_size) > total_memory():
        raise ValueError(
            f"data.batch_size={batch_size}: the token ids of such a batch take {needed / 1e9:,.0f} GB, more than this "
            "machine has"
        )


class TokenLoader:
    """Samples of `block_size` tokens and the same shifted by one, from a split of the token files at `path`.

    Sample `s` is row `s % batch_size` of batch `s // batch_size`, for every batch size: the same global batch
    cut into other micro-batches, or dealt out to ranks, holds the same samples. An id of `vocab_size` or above is
    refused when it is read (null: what `meta.json` says). `dtype` is the type of files without `meta.json` or header;
    null: uint16, unless they look like another.

    Raises:
        DataError: the split is missing, damaged, of another type, or has not one block of block_size + 1 tokens; from
            reading, an id that is too large or a file that became shorter.
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
        self.max_samples: int | None = None  # it begins again and again
        self.samples = Samples(Path(path), split, block_size, seed, order, split, vocab_size, dtype)

    @property
    def total_tokens(self) -> int:
        return len(self.samples.tokens)

    @property
    def bytes_per_token(self) -> float | None:
        """UTF-8 bytes of source text a token of this split stands for; None where the folder has no `meta.json`.

        Text that the tokenizer lost does not count.
        """
        split = self.samples.meta.splits[self.split] if self.samples.meta else None
        return split.kept_bytes / split.tokens if split else None

    @property
    def sampled_bytes_per_token(self) -> float | None:
        """The same as `bytes_per_token`, of what `batch` gives."""
        return self.bytes_per_token

    @property
    def fingerprint(self) -> str:
        """A text that changes with the split's contents."""
        return self.samples.tokens.fingerprint

    @property
    def file_stamps(self) -> dict[str, list[int]]:
        """What shows quickly that no file was touched; see `TokenFiles.file_stamps`."""
        return self.samples.tokens.file_stamps

    def check_contents(self) -> bool:
        """Compare the files with their checksums; return False where there are none. Raises DataError."""
        return self.samples.tokens.check_contents()

    def epochs(self, samples: int) -> Mapping[str, float]:
        """Return how often the data has been seen after so many samples."""
        return {self.path: samples / self.samples.blocks}

    def batch(self, index: int) -> Batch:
        """Return micro-batch `index` ≥ 0: inputs and targets, int64 (B, T) on the CPU."""
        return inputs_and_targets(self.samples.windows(index * self.batch_size, self.batch_size))

    def locate_batch(self, index: int) -> list[tuple[Path, int]]:
        """Return where each sample of micro-batch `index` comes from: file, and number of its first token there."""
        return self.samples.locate_samples(index * self.batch_size, self.batch_size)

    def whole_split(self) -> Batches:
        """Return every target token of the split once, in file order; see `Samples.whole_split`."""
        return self.samples.whole_split(self.batch_size)


def inputs_and_targets(windows: Tokens) -> Batch:
    """Return windows (B, T + 1) as inputs and targets, each (B, T)."""
    return torch.from_numpy(windows[:, :-1].astype(np.int64)), torch.from_numpy(windows[:, 1:].astype(np.int64))
