"""What a split of token files holds, in one pass over it with bounded memory."""

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lmtrain.data.inspection.repeats import ChunkDocuments, Counts, Pieces
from lmtrain.data.meta import Tokens
from lmtrain.data.token_files import TokenFiles

CHUNK_TOKENS = 1 << 18  # what the passes over a chunk need of memory stays in the processor's cache
RELEASE_CHUNKS = 128  # after which the pages read are given back
PASSAGE_TOKENS = 64
MOST_DOCUMENTS = 1 << 24  # hashes held, 16 bytes each; of more documents, a part that the hash chooses
MOST_PASSAGES = 1 << 21
MOST_IDS = 1 << 20  # counted one by one; larger than any vocabulary, so what is beyond is damaged
MOST_VOCABULARY = 1 << 24  # where meta.json says so; what says more is damaged
MOST_LENGTHS = 1 << 20  # counted one by one; longer documents are few enough to be listed
LONGER_THAN = tuple(512 << i for i in range(8))  # tokens: the usual block sizes


@dataclass(frozen=True)
class HashedFile:
    """One file of a split, with the SHA-256 of its bytes."""

    path: Path
    tokens: int
    bytes: int  # with its header
    sha256: str


@dataclass(frozen=True)
class Lengths:
    """How many documents have each length, in tokens without the end of text; ascending."""

    lengths: Counts
    documents: Counts

    @property
    def total(self) -> int:
        return int(self.documents.sum())

    @property
    def mean(self) -> float:
        return int(self.lengths @ self.documents) / self.total

    def quantile(self, share: float) -> int:
        """Return the smallest length that this share of the documents does not exceed."""
        at_most = np.cumsum(self.documents)
        return int(self.lengths[np.searchsorted(at_most, share * self.total)])

    def longer_than(self, tokens: int) -> int:
        return int(self.documents[self.lengths > tokens].sum())


@dataclass(frozen=True)
class SplitStatistics:
    """One split; `starts` are places where documents begin, or any places if documents are not known."""

    files: tuple[HashedFile, ...]
    dtype: str
    sha256: str  # of all files, one after the other
    token_counts: Counts  # by id, up to the largest one
    beyond: int  # tokens with ids too large to be counted one by one
    max_id: int
    first_too_large: int | None  # the place of the first id not below the vocabulary size
    lengths: Lengths | None  # None: no end-of-text id is known
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
        """Return ids, the most frequent first; of equally frequent ones the smaller first."""
        order = np.argsort(-self.token_counts, kind="stable")[:count]
        return [int(i) for i in order if self.token_counts[i]]


def entropy(counts: Counts) -> float:
    """Return the entropy of these counts in nats a token: the loss of a model that knows them and nothing else."""
    seen = counts[counts > 0].astype(np.float64)
    total = seen.sum()
    return float(-(seen / total) @ np.log(seen / total)) if total else 0.0


def unigram_loss(counts: Counts, train_counts: Counts, vocab_size: int) -> float:
    """Return the loss, in nats, of a model that gives every token its share of the training tokens.

    Each of the vocabulary's ids counts one more than it was seen, as an unseen one would cost infinitely much.
    """
    known = np.ones(max(len(counts), len(train_counts)))
    known[: len(train_counts)] += train_counts
    seen = np.flatnonzero(counts)
    shares = counts[seen] / counts.sum()
    total = known.sum() + max(vocab_size - len(known), 0)  # no vector of ids that do not occur: there may be billions
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

    `chunk_tokens` changes nothing in the result.

    Raises:
        DataError: a file became shorter meanwhile.
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
    """SHA-256 of each file, headers included, and of all of them one after the other."""

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
    """Yield the split in chunks that lie in one file each; read and hash the next one while this one is used."""

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
    """How often each id occurs, and where the first one stands that is too large."""

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
    """Where documents begin, spread over the split: the first one behind a random place in each n-th of it."""

    def __init__(self, tokens: int, samples: int, seed: int) -> None:
        places = (np.arange(samples) + np.random.default_rng(seed).random(samples)) / max(1, samples)
        self.targets = (places * tokens).astype(np.int64)
        self._found = 0  # targets that have their document
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
        """Return the places; fewer where there are few documents, the last one for targets behind its beginning."""
        missing = self._last if self._found < len(self.targets) else []
        return tuple(sorted({*self._starts, *missing}))
