"""Finds text that occurs more than once in token files, by 64-bit hashes of whole documents and of short passages.

The hash of tokens t₀ … tₙ is Σ tᵢ·bⁱ mod 2⁶⁴ (a polynomial hash, Karp and Rabin 1987). Prefix sums over a chunk give
the hash of any span with one subtraction and one multiplication, so nothing here loops over documents. Two different
spans of real text have the same hash with a probability of about 2⁻⁶⁴. It is not hard to make such a pair on purpose.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from lmtrain.data.meta import Tokens

BASE = 0x9E3779B97F4A7C15  # odd, so that it has an inverse; ≡ 5 mod 8, so that its powers repeat as late as possible
MASK = (1 << 64) - 1

Hashes = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


class SpanHash:
    """Computes hashes of spans in the last chunk read, which has at most `most_tokens` tokens."""

    def __init__(self, most_tokens: int) -> None:
        self._powers = _powers(BASE, most_tokens)
        self._inverses = _powers(pow(BASE, -1, 1 << 64), most_tokens)
        self._products = np.empty(most_tokens, np.uint64)
        self._sums = np.zeros(most_tokens + 1, np.uint64)
        self._windows = np.empty(most_tokens, np.uint64)

    def read(self, tokens: Tokens) -> None:
        n = len(tokens)
        np.multiply(tokens, self._powers[:n], out=self._products[:n])
        np.cumsum(self._products[:n], out=self._sums[1 : n + 1])

    def spans(self, starts: Counts, ends: Counts) -> Hashes:
        """Return the hashes of tokens starts[i] … ends[i]-1."""
        hashes: Hashes = (self._sums[ends] - self._sums[starts]) * self._inverses[starts]
        return hashes

    def windows(self, tokens: int, length: int) -> Hashes:
        """Return the hash of each window of `length` in the chunk's first `tokens`; the next call overwrites it."""
        count = max(0, tokens - length + 1)
        windows = self._windows[:count]
        np.subtract(self._sums[length : length + count], self._sums[:count], out=windows)
        windows *= self._inverses[:count]
        return windows


def _powers(base: int, most: int) -> Hashes:
    powers = np.full(most + 1, base, np.uint64)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def joined_hash(first: int, first_tokens: int, second: int) -> int:
    """Return the hash of two spans one after the other."""
    return (first + pow(BASE, first_tokens, 1 << 64) * second) & MASK


def scrambled_hashes(hashes: Hashes, lengths: Counts) -> Hashes:
    """Mix the hashes of spans with their lengths, and spread them over 0 … 2⁶⁴-1 (the finaliser of splitmix64)."""
    mixed = hashes + lengths.astype(np.uint64) * np.uint64(0xD6E8FEB86659FD93)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    scrambled: Hashes = mixed ^ (mixed >> np.uint64(31))
    return scrambled


class Repeats(NamedTuple):
    """The number of pieces (documents or passages) that were checked, how many are repeated, and their tokens."""

    pieces: int
    tokens: int
    repeated: int
    repeated_tokens: int
    looked_at: float  # the share of all pieces that were checked; 1 means that the numbers are exact

    @property
    def share(self) -> float:
        return self.repeated / max(1, self.pieces)

    @property
    def share_of_tokens(self) -> float:
        return self.repeated_tokens / max(1, self.tokens)


class HashSubset:
    """At most `most` hashes of pieces: all those below a limit, which is halved when there are too many.

    So either all copies of a piece are in the subset or none, in every split, whatever the order of the pieces.
    """

    def __init__(self, most: int) -> None:
        self.most, self.halvings = most, 0
        self._hashes: list[Hashes] = []
        self._lengths: list[Counts] = []
        self._count = 0

    @property
    def limit(self) -> np.uint64:
        """Return the largest hash that belongs to the subset."""
        return np.uint64(MASK >> self.halvings)

    def add(self, hashes: Hashes, lengths: Counts) -> None:
        chosen = hashes <= self.limit
        self._hashes.append(hashes[chosen])
        self._lengths.append(lengths[chosen])
        self._count += len(self._hashes[-1])
        while self._count > self.most:
            self.halvings += 1
            hashes, lengths = self._merged()
            chosen = hashes <= self.limit
            self._hashes, self._lengths = [hashes[chosen]], [lengths[chosen]]
            self._count = len(self._hashes[0])

    def repeats(self) -> Repeats:
        """Return how many of the pieces repeat an earlier piece."""
        hashes, lengths = self._sorted()
        repeated = np.append(False, hashes[1:] == hashes[:-1])[: len(hashes)]
        return Repeats(
            len(hashes),
            int(lengths.sum()),
            int(repeated.sum()),
            int(lengths[repeated].sum()),
            0.5**self.halvings,
        )

    def repeats_of(self, other: "HashSubset") -> Repeats:
        """Return how many of the pieces are also in the other subset."""
        halvings = max(self.halvings, other.halvings)
        hashes, lengths = self._sorted()
        count = int(np.searchsorted(hashes, np.uint64(MASK >> halvings), side="right"))
        hashes, lengths = hashes[:count], lengths[:count]
        known = other._sorted()[0]
        found = np.zeros(count, bool)
        if len(known):  # lookups in ascending order are fast, because neighbours are in the cache
            found = known[np.minimum(np.searchsorted(known, hashes), len(known) - 1)] == hashes
        return Repeats(len(hashes), int(lengths.sum()), int(found.sum()), int(lengths[found].sum()), 0.5**halvings)

    def _merged(self) -> tuple[Hashes, Counts]:
        self._hashes = [np.concatenate([np.empty(0, np.uint64), *self._hashes])]
        self._lengths = [np.concatenate([np.empty(0, np.int64), *self._lengths])]
        return self._hashes[0], self._lengths[0]

    def _sorted(self) -> tuple[Hashes, Counts]:
        hashes, lengths = self._merged()
        order = np.argsort(hashes)
        self._hashes, self._lengths = [hashes[order]], [lengths[order]]
        return self._hashes[0], self._lengths[0]


class ChunkDocuments(NamedTuple):
    """The documents that end in one chunk; `starts` are positions in the split."""

    starts: Counts
    lengths: Counts  # tokens, without the end of text
    hashes: Hashes
    empty: int


class Pieces:
    """Collects the documents and passages of a split; the result does not depend on how it is cut into chunks.

    Documents are the tokens between end-of-text ids, which may come before or after each document. Without such an id
    there are no documents. A passage is a window of `passage_tokens` tokens without an end-of-text id.
    """

    def __init__(
        self, end_of_text: int | None, passage_tokens: int, chunk_tokens: int, most_documents: int, most_passages: int
    ) -> None:
        self.end_of_text, self.passage_tokens = end_of_text, passage_tokens
        self.documents, self.passages = HashSubset(most_documents), HashSubset(most_passages)
        self._hash = SpanHash(chunk_tokens + passage_tokens)
        # The last tokens of the previous chunk, one fewer than a passage.
        self._tail: npt.NDArray[Any] = np.empty(0, np.uint32)
        self._read = 0
        self._open_hash = self._open_tokens = 0  # of the document that continues in the next chunk

    def read(self, tokens: Tokens) -> ChunkDocuments:
        carried = len(self._tail)
        tokens = np.concatenate([self._tail.astype(tokens.dtype), tokens])
        self._hash.read(tokens)
        marks = np.flatnonzero(tokens == self.end_of_text) if self.end_of_text is not None else np.empty(0, np.int64)
        self._read_passages(tokens, marks)
        documents = self._read_documents(carried, len(tokens), marks[np.searchsorted(marks, carried) :])
        self._read += len(tokens) - carried
        self._tail = tokens[max(0, len(tokens) - self.passage_tokens + 1) :]
        return documents

    def close(self) -> ChunkDocuments:
        """Return the last document, unless an end-of-text id has ended it."""
        length = np.array([self._open_tokens] if self._open_tokens and self.end_of_text is not None else [], np.int64)
        hashes = scrambled_hashes(np.array([self._open_hash] * len(length), np.uint64), length)
        self.documents.add(hashes, length)
        return ChunkDocuments(self._read - length, length, hashes, 0)

    def _read_passages(self, tokens: Tokens, marks: Counts) -> None:
        hashes = self._hash.windows(len(tokens), self.passage_tokens)
        chosen = hashes <= self.passages.limit
        if len(marks):
            spans = np.diff(marks, prepend=-1, append=len(tokens))  # each including the mark at its end
            inside = np.maximum(spans - self.passage_tokens, 0)
            pattern = np.tile([True, False], len(spans))
            chosen &= np.repeat(pattern, np.stack([inside, spans - inside], axis=1).ravel())[: len(chosen)]
        starts = np.flatnonzero(chosen)
        self.passages.add(hashes[starts], np.full(len(starts), self.passage_tokens))

    def _read_documents(self, begin: int, end: int, marks: Counts) -> ChunkDocuments:
        """Return the documents that end at the marks, in the chunk's tokens begin … end-1."""
        bounds = np.concatenate([[begin], marks + 1])
        starts, ends = bounds[:-1], np.append(marks, end)
        hashes, lengths = self._hash.spans(bounds, ends), ends - bounds
        hashes[0] = joined_hash(self._open_hash, self._open_tokens, int(hashes[0]))
        lengths[0] += self._open_tokens
        starts = starts + (self._read - begin)
        starts[:1] -= self._open_tokens
        self._open_hash, self._open_tokens = int(hashes[-1]), int(lengths[-1])
        hashes, lengths = hashes[:-1], lengths[:-1]
        full = lengths > 0
        # An end-of-text id at the very start begins a document, so it does not end an empty one.
        empty = len(full) - int(full.sum()) - int(len(full) > 0 and starts[0] == 0 and not full[0])
        found = ChunkDocuments(starts[full], lengths[full], scrambled_hashes(hashes[full], lengths[full]), empty)
        self.documents.add(found.hashes, found.lengths)
        return found
