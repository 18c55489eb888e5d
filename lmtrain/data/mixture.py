"""Mixes several datasets in given proportions, as one loader."""

import hashlib
from bisect import bisect_right
from collections.abc import Callable, Mapping
from fractions import Fraction
from functools import reduce
from itertools import chain
from math import gcd
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from lmtrain.data.loader import (
    EVENLY_SPACED,
    WHOLE_SPLIT,
    Batch,
    Batches,
    Samples,
    check_batch_fits,
    inputs_and_targets,
    spaced_batches,
)
from lmtrain.data.meta import Meta, Tokens
from lmtrain.data.order import interleave
from lmtrain.errors import DataError

LARGEST_PERIOD = 100_000  # the most samples before the proportions repeat, enough for weights of five digits


class Phase(NamedTuple):
    """The samples from `start` until a source is used up; `period` gives the source of each, and repeats."""

    start: int
    period: npt.NDArray[np.int64]  # (D,) the source of each slot
    before: npt.NDArray[np.int64]  # (D, K) samples of each source in the slots before
    shares: npt.NDArray[np.int64]  # (K,) samples of each source in a whole period
    used: npt.NDArray[np.int64]  # (K,) samples of each source before this phase


class Mixture:
    """Loads batches whose samples come from several folders of token files, in given proportions.

    The samples of a batch are a pure function of (weights, seed, index). Among the first n samples, for every n, each
    source has its share to within one block. With two sources, the same is true for every window of n samples; with
    more sources, each has its share of a window to within two blocks (one is impossible: Fraenkel's conjecture).

    Args:
        paths: The folder of token files of each source, by name. All must be made with the same tokenizer.
        weights: The share of the samples that come from each source, by name, in any unit.
        split: The split to read, `train` or `val`.
        batch_size: Sequences per micro-batch.
        block_size: Tokens per sequence.
        seed: The seed of the order.
        max_epochs: How many times each source may be seen, by name. A source that is used up drops out, and the others
            share its place in their proportions. null: no limit.
        order: The order within each source, as in `TokenLoader`.
        vocab_size: An id at or above it is an error when it is read. null: the vocabulary size in `meta.json`.
        dtype: The number type of all files without `meta.json` or header. null: uint16, unless they look like another
            type.

    Raises:
        DataError: a folder is damaged, or was made with another tokenizer than the first. Reading also raises it when
            every source is used up.
        ValueError: paths and weights have different names, or the weights have too many digits.
    """

    def __init__(
        self,
        paths: dict[str, str],
        weights: dict[str, PositiveFloat],
        split: str,
        batch_size: PositiveInt,
        block_size: PositiveInt,
        seed: NonNegativeInt,
        max_epochs: dict[str, PositiveInt] | None = None,
        order: Literal["shuffle", "random", "sequential"] = "shuffle",
        vocab_size: PositiveInt | None = None,
        dtype: Literal["uint8", "uint16", "uint32", "uint64", "int16", "int32", "int64"] | None = None,
    ) -> None:
        if not paths or paths.keys() != weights.keys():
            raise ValueError(
                f"data.weights: needs one weight for each name in data.paths ({', '.join(paths) or 'none given'})"
            )
        if unknown := (max_epochs or {}).keys() - paths.keys():
            raise ValueError(f"data.max_epochs.{min(unknown)}: no such source; the names are {', '.join(paths)}")
        check_batch_fits(batch_size, block_size)
        weights = {name: weights[name] for name in paths}  # in the order of paths
        self.split, self.batch_size, self.block_size, self.seed = split, batch_size, block_size, seed
        self.path = " + ".join(paths.values())
        self.sources = {
            name: Samples(Path(path), split, block_size, seed, order, f"{split}/{name}", vocab_size, dtype)
            for name, path in paths.items()
        }
        self._weights = weights
        _check_tokenizers(self.sources)
        limits = [
            # Validation has no limit: the trainer decides how much of the split it reads.
            samples.blocks * max_epochs[name] if split == "train" and max_epochs and name in max_epochs else None
            for name, samples in self.sources.items()
        ]
        self._phases, self.max_samples = mixture_phases(whole_shares(weights), limits)

    @property
    def total_tokens(self) -> int:
        return sum(len(samples.tokens) for samples in self.sources.values())

    @property
    def bytes_per_token(self) -> float | None:
        """Return the UTF-8 bytes of source text per token of this split; None if a folder has no `meta.json`."""
        splits = [samples.meta.splits[self.split] for samples in self.sources.values() if samples.meta]
        if len(splits) < len(self.sources):
            return None
        return sum(split.kept_bytes for split in splits) / sum(split.tokens for split in splits)

    @property
    def sampled_bytes_per_token(self) -> float | None:
        """Return the bytes per token of the samples that `batch` returns, where each source counts by its weight."""
        per_token = {
            name: split.kept_bytes / split.tokens
            for name, samples in self.sources.items()
            if samples.meta and (split := samples.meta.splits[self.split])
        }
        if len(per_token) < len(self.sources):
            return None
        return sum(self._weights[name] * each for name, each in per_token.items()) / sum(self._weights.values())

    @property
    def metas(self) -> list[Meta | None]:
        return [samples.meta for samples in self.sources.values()]

    @property
    def fingerprint(self) -> str:
        """Return a text that changes with the contents of any source, and with their names and order."""
        parts = [(name, samples.tokens.fingerprint) for name, samples in self.sources.items()]
        return hashlib.sha256(repr(parts).encode()).hexdigest()

    @property
    def file_stamps(self) -> dict[str, list[int]]:
        """Return the stamps of the files, which show quickly that no file has changed; see `TokenFiles.file_stamps`."""
        return {
            f"{name}/{file}": stamp
            for name, samples in self.sources.items()
            for file, stamp in samples.tokens.file_stamps.items()
        }

    def check_contents(self) -> bool:
        """Compare the files with their checksums; return False if a source has none.

        Raises:
            DataError: a file differs.
        """
        checked = [samples.tokens.check_contents() for samples in self.sources.values()]
        return all(checked)

    def epochs(self, samples: int) -> Mapping[str, float]:
        """Return how many times each source has been seen after `samples` samples."""
        _, numbers = self._assign(samples if self.max_samples is None else min(samples, self.max_samples), 0)
        return {name: n / source.blocks for n, (name, source) in zip(numbers, self.sources.items(), strict=True)}

    def batch(self, index: int) -> Batch:
        """Return micro-batch `index` ≥ 0: inputs and targets, int64 (B, T) on the CPU.

        Raises:
            DataError: every source is used up.
        """
        first = index * self.batch_size
        if self.max_samples is not None and first + self.batch_size > self.max_samples:
            raise DataError(
                f"data.max_epochs: all sources are used up after {self.max_samples:,} samples; allow more epochs, or "
                "train for fewer steps"
            )
        source_of, firsts = self._assign(first, self.batch_size)
        return inputs_and_targets(
            self._gather(source_of, lambda number, samples, count: samples.windows(int(firsts[number]), count))
        )

    def _gather(self, source_of: npt.NDArray[np.int64], read: Callable[[int, Samples, int], Tokens]) -> Tokens:
        """Return windows, (len(source_of), T + 1), of which `read` returns those of one source at a time."""
        dtype = np.result_type(*(samples.tokens.dtype for samples in self.sources.values()))
        windows = np.empty((len(source_of), self.block_size + 1), dtype)
        for number, samples in enumerate(self.sources.values()):
            rows = source_of == number
            if count := int(rows.sum()):
                windows[rows] = read(number, samples, count)
        return windows

    def locate_batch(self, index: int) -> list[tuple[Path, int]]:
        """Return each sample's file and the number of its first token there, for micro-batch `index`."""
        source_of, firsts = self._assign(index * self.batch_size, self.batch_size)
        places = [
            iter(samples.locate_samples(int(first), int((source_of == number).sum())))
            for number, (samples, first) in enumerate(zip(self.sources.values(), firsts, strict=True))
        ]
        return [next(places[number]) for number in source_of]

    def whole_split(self) -> Batches:
        """Return every target token of every source's split once, one source after the other."""
        return chain.from_iterable(samples.whole_split(self.batch_size) for samples in self.sources.values())

    def spaced_blocks(self, sequences: int) -> Batches:
        """Return that many blocks, of each source its share by weight, as in `TokenLoader.spaced_blocks`."""
        source_of, _ = self._assign(0, sequences)
        _, counts = self._assign(sequences, 0)
        earlier = np.zeros(sequences, np.int64)  # how many blocks of the same source come before
        for number in range(len(self.sources)):
            earlier[source_of == number] = np.arange(counts[number])

        def windows(numbers: npt.NDArray[np.int64]) -> Tokens:
            own, places = source_of[numbers], earlier[numbers]
            return self._gather(
                own, lambda number, samples, _: samples.spaced_windows(places[own == number], int(counts[number]))
            )

        return spaced_batches(windows, sequences, self.batch_size)

    def measured(self, sequences: int | None) -> dict[str, Any]:
        """Describe which target tokens an evaluation of so many sequences reads; see `TokenLoader.measured`."""
        if sequences is None:
            return {"selection": WHOLE_SPLIT, "tokens": self.total_tokens - len(self.sources)}
        return {"selection": EVENLY_SPACED, "tokens": sequences * self.block_size, "weights": dict(self._weights)}

    def _assign(self, first: int, count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return the source of each of `count` samples from `first` on, and each source's number of earlier samples."""
        source_of = np.empty(count, np.int64)
        starts = [phase.start for phase in self._phases]
        current = bisect_right(starts, first) - 1
        phase = self._phases[current]
        whole, slot = divmod(first - phase.start, len(phase.period))
        before = phase.used + whole * phase.shares + phase.before[slot]
        done = 0
        while done < count:
            phase = self._phases[current]
            end = starts[current + 1] if current + 1 < len(starts) else first + count
            here = np.arange(first + done, min(end, first + count)) - phase.start
            source_of[done : done + len(here)] = phase.period[here % len(phase.period)]
            done, current = done + len(here), current + 1
        return source_of, before


def whole_shares(weights: Mapping[str, float]) -> list[int]:
    """Return the smallest whole numbers in the same proportions as the weights, which count as exact decimals.

    Raises:
        ValueError: the numbers add up to more than LARGEST_PERIOD.
    """
    exact = [Fraction(repr(weight)) for weight in weights.values()]
    common = reduce(lambda a, b: a * b // gcd(a, b), (weight.denominator for weight in exact))
    whole = [int(weight * common) for weight in exact]
    whole = [weight // gcd(*whole) for weight in whole]
    if sum(whole) > LARGEST_PERIOD:
        written = ", ".join(f"{name}={weight}" for name, weight in weights.items())
        raise ValueError(
            f"data.weights: {written} repeat only after {sum(whole):,} samples, but at most {LARGEST_PERIOD:,} are "
            "allowed; round the weights, for example to three digits"
        )
    return whole


def mixture_phases(weights: list[int], limits: list[int | None]) -> tuple[list[Phase], int | None]:
    """Return the phases, each with fewer sources than the one before, and the total of the samples (None: no end)."""
    phases: list[Phase] = []
    used = np.zeros(len(weights), np.int64)
    start = 0
    left = list(range(len(weights)))
    while left:
        share = np.zeros(len(weights), np.int64)
        share[left] = [weights[k] // gcd(*(weights[j] for j in left)) for k in left]
        period = np.array(left)[interleave([int(share[k]) for k in left])]
        each = period[:, None] == np.arange(len(weights))  # (D, K)
        before = np.cumsum(each, axis=0) - each
        phases.append(Phase(start, period, before, share, used))
        ends = {}
        for k in left:
            limit = limits[k]
            if limit is not None:
                whole, last = divmod(limit - int(used[k]) - 1, int(share[k]))
                ends[k] = whole * len(period) + int(np.flatnonzero(period == k)[last]) + 1
        if not ends:
            return phases, None
        length = min(ends.values())
        whole, slot = divmod(length, len(period))
        used = used + whole * share + before[slot]
        start += length
        left = [k for k in left if limits[k] is None or used[k] < (limits[k] or 0)]
    return phases, start


def _check_tokenizers(sources: Mapping[str, Samples]) -> None:
    made_with = {name: samples.meta.tokenizer.sha256 for name, samples in sources.items() if samples.meta}
    first = next(iter(made_with), "")
    for name, sha256 in made_with.items():
        if sha256 != made_with[first]:
            raise DataError(
                f"data.paths.{name}: made with another tokenizer than data.paths.{first}; prepare all with the same one"
            )
