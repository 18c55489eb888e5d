"""Computes the statistics of a split of token files in one pass with bounded memory."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmtrain.data.inspection.repeats import ChunkDocuments, Counts, Pieces
from lmtrain.data.meta import Tokens
from lmtrain.data.token_files import TokenFiles

CHUNK_TOKENS = 1 << 18  # small enough for the processor's cache
RELEASE_CHUNKS = 128  # chunks after which the pages read are released
PASSAGE_TOKENS = 64
MOST_DOCUMENTS = 1 << 24  # hashes in memory, 16 bytes each; if there are more documents, the hash chooses a subset
MOST_PASSAGES = 1 << 21
MOST_IDS = 1 << 20  # ids with their own counter; larger than any vocabulary, so an id beyond it is damaged
MOST_VOCABULARY = 1 << 24  # the same limit if meta.json has a larger vocabulary
MOST_LENGTHS = 1 << 20  # lengths with their own counter; the few longer documents are listed
LONGER_THAN = tuple(512 << i for i in range(8))  # tokens; the usual block sizes


@dataclass(frozen=True)
class HashedFile:
    """A file of a split, with the SHA-256 of its bytes."""

    path: Path
    tokens: int
    bytes: int  # including the header
    sha256: str


@dataclass(frozen=True)
class Lengths:
    """The number of documents of each length, in tokens without the end of text; lengths are ascending."""

    lengths: Counts
    documents: Counts

    @property
    def total(self) -> int:
        return int(self.documents.sum())

    @property
    def mean(self) -> float:
        return int(self.lengths @ self.documents) / self.total

    def quantile(self, share: float) -> int:
        """Return the smallest length that at least this share of the documents does not exceed."""
        at_most = np.cumsum(self.documents)
        return int(self.lengths[np.searchsorted(at_most, share * self.total)])

    def longer_than(self, tokens: int) -> int:
        return int(self.documents[self.lengths > tokens].sum())


@dataclass(frozen=True)
class SplitStatistics:
    """The statistics of a split; `starts` are the positions of samples, at documents if the end of text is known."""

    files: tuple[HashedFile, ...]
    dtype: str
    sha256: str  # of all files, one after the other
    token_counts: Counts  # by id, up to the largest id
    beyond: int  # tokens with ids that are too large for their own counter
    max_id: int
    first_too_large: int | None  # the position of the first id not below the vocabulary size
    lengths: Lengths | None  # None: the end-of-text id is not known
    empty_documents: int
    starts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum(file.tokens for file in self.files)

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def ids_in_use(self) -> int:
        return int(np.count_nonzero(self.token_counts))

    def above(self, vocab_size: int) -> int:
        """Return the number of tokens whose id is not below the vocabulary size."""
        return int(self.token_counts[vocab_size:].sum()) + self.beyond

    def most_frequent(self, count: int) -> list[int]:
        """Return the most frequent ids in descending order of frequency, then ascending by id."""
        order = np.argsort(-self.token_counts, kind="stable")[:count]
        return [int(i) for i in order if self.token_counts[i]]


def entropy(counts: Counts) -> float:
    """Return the entropy of these counts in nats per token, the loss of a model that knows only these frequencies."""
    seen = counts[counts > 0].astype(np.float64)
    total = seen.sum()
    return float(-(seen / total) @ np.log(seen / total)) if total else 0.0


def unigram_loss(counts: Counts, train_counts: Counts, vocab_size: int) -> float:
    """Return the loss, in nats per token, of a model that gives each token its share of the training tokens.

    Each id of the vocabulary counts one more than it occurs, because an unseen id would have an infinite loss.
    """
    known = np.ones(max(len(counts), len(train_counts)))
    known[: len(train_counts)] += train_counts
    seen = np.flatnonzero(counts)
    shares = counts[seen] / counts.sum()
    # There may be billions of unseen ids, so they are counted without a vector.
    total = known.sum() + max(vocab_size - len(known), 0)
    return float(-shares @ np.log(known[seen] / total))


def read_split(
    files: TokenFiles,
    *,
    end_of_text: int | None,
    vocab_size: int | None,
    samples: int = 0,
    seed: int = 0,
    chunk_tokens: int = CHUNK_TOKENS,
    passage_tokens: int = PASSAGE_TOKENS,
    most_documents: int = MOST_DOCUMENTS,
    most_passages: int = MOST_PASSAGES,
    advance: Callable[[int, int], None] = lambda bytes_read, tokens: None,
) -> tuple[SplitStatistics, Pieces]:
    """Read a split once; return its statistics, and its documents and passages.

    The result does not depend on `chunk_tokens`.

    Raises:
        DataError: a file became shorter while it was read.
    """
    pieces = Pieces(end_of_text, passage_tokens, chunk_tokens, most_documents, most_passages)
    counts, lengths = TokenCounts(vocab_size), LengthCounts()
    starts = SampleStarts(len(files), samples, seed)
    empty_documents = 0
    digests = Digests(files)
    for number, tokens in enumerate(_read_ahead(files, chunk_tokens, digests)):
        counts.read(tokens)
        documents = pieces.read(tokens)
        lengths.add(documents.lengths)
        starts.add(documents)
        empty_documents += documents.empty
        if number % RELEASE_CHUNKS == 0:
            files.release()
        advance(tokens.nbytes, len(tokens))
    files.release()
    last = pieces.close()
    lengths.add(last.lengths)
    starts.add(last)
    statistics = SplitStatistics(
        files=digests.files(),
        dtype=files.dtype.name,
        sha256=digests.all,
        token_counts=counts.counts[: counts.max_id + 1],
        beyond=counts.beyond,
        max_id=counts.max_id,
        first_too_large=counts.first_too_large,
        lengths=None if end_of_text is None else lengths.counted(),
        empty_documents=empty_documents,
        starts=starts.found() if end_of_text is not None else tuple(starts.targets.tolist()),
    )
    return statistics, pieces


class Digests:
    """Computes the SHA-256 of each file, including headers, and of all files one after the other."""

    def __init__(self, files: TokenFiles) -> None:
        self._files = files.files
        self._each: list[hashlib._Hash] = []
        self._all = hashlib.sha256()

    def read(self, index: int, tokens: Tokens) -> None:
        if index == len(self._each):
            header = self._files[index].mapped[: self._files[index].offset]
            self._each.append(hashlib.sha256(header))
            self._all.update(header)
        self._each[index].update(tokens.data)
        if len(self._files) > 1:
            self._all.update(tokens.data)

    @property
    def all(self) -> str:
        return (self._all if len(self._files) > 1 else self._each[0]).hexdigest()

    def files(self) -> tuple[HashedFile, ...]:
        return tuple(
            HashedFile(file.path, len(file.tokens), file.size, digest.hexdigest())
            for file, digest in zip(self._files, self._each, strict=True)
        )


def _read_ahead(files: TokenFiles, chunk_tokens: int, digests: Digests) -> Iterator[Tokens]:
    """Yield the split in chunks that do not cross files; read and hash the next chunk while the current one is used."""

    def read(index: int, start: int, stop: int) -> Tokens:
        tokens = files.span(start, stop)
        digests.read(index, tokens)
        return tokens

    with ThreadPoolExecutor(1) as thread:
        coming: Future[Tokens] | None = None
        for index, end in enumerate(files.ends.tolist()):
            begin = end - len(files.files[index].tokens)
            for start in range(begin, end, chunk_tokens):
                ready, coming = coming, thread.submit(read, index, start, min(start + chunk_tokens, end))
                if ready:
                    yield ready.result()
        if coming:
            yield coming.result()


class TokenCounts:
    """Counts how often each id occurs, and finds the first id that is too large."""

    def __init__(self, vocab_size: int | None) -> None:
        self.vocab_size, self.most_ids = vocab_size, max(MOST_IDS, min(vocab_size or 0, MOST_VOCABULARY))
        self.counts = np.zeros(0, np.int64)
        self.max_id = self.beyond = self._read = 0
        self.first_too_large: int | None = None

    def read(self, tokens: Tokens) -> None:
        largest = int(tokens.max())
        self.max_id = max(self.max_id, largest)
        if self.vocab_size is not None and largest >= self.vocab_size and self.first_too_large is None:
            self.first_too_large = self._read + int(np.argmax(tokens >= self.vocab_size))
        self._read += len(tokens)
        if largest >= self.most_ids:
            few = tokens[tokens < self.most_ids]
            self.beyond += len(tokens) - len(few)
            tokens = few
        counted = np.bincount(tokens.astype(np.int64, copy=False), minlength=len(self.counts))
        counted[: len(self.counts)] += self.counts
        self.counts = counted


class LengthCounts:
    """Counts documents by their length."""

    def __init__(self) -> None:
        self._counts = np.zeros(MOST_LENGTHS, np.int64)
        self._longer: list[int] = []

    def add(self, lengths: Counts) -> None:
        np.add.at(self._counts, lengths[lengths < MOST_LENGTHS], 1)
        self._longer += lengths[lengths >= MOST_LENGTHS].tolist()

    def counted(self) -> Lengths:
        short = np.flatnonzero(self._counts)
        long, documents = np.unique(np.array(self._longer, np.int64), return_counts=True)
        return Lengths(np.append(short, long), np.append(self._counts[short], documents))


class SampleStarts:
    """Chooses documents spread over the split: in each n-th of it, the first document after a random position."""

    def __init__(self, tokens: int, samples: int, seed: int) -> None:
        places = (np.arange(samples) + np.random.default_rng(seed).random(samples)) / max(1, samples)
        self.targets = (places * tokens).astype(np.int64)
        self._found = 0  # targets with a document
        self._starts: list[int] = []
        self._last: list[int] = []

    def add(self, documents: ChunkDocuments) -> None:
        starts = documents.starts
        behind = np.searchsorted(starts, self.targets[self._found :])
        behind = behind[behind < len(starts)]
        self._starts += starts[behind].tolist()
        self._found += len(behind)
        self._last = starts[-1:].tolist() or self._last

    def found(self) -> tuple[int, ...]:
        """Return the positions, fewer than asked for if there are few documents.

        Targets after the beginning of the last document all get the last document.
        """
        missing = self._last if self._found < len(self.targets) else []
        return tuple(sorted({*self._starts, *missing}))
