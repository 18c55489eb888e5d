"""Statistics of token files agree with plain Python on the same tokens, for any files and chunks."""

import hashlib
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.inspection.repeats import HashSubset, SpanHash, joined_hash
from lmtrain.data.inspection.statistics import (
    MOST_IDS,
    MOST_LENGTHS,
    SplitStatistics,
    TokenCounts,
    entropy,
    read_split,
    unigram_loss,
)
from lmtrain.data.meta import DTYPES
from lmtrain.data.token_files import TokenFiles, split_files

END = 0
PASSAGE = 3


def write(folder: Path, tokens: list[int], cuts: list[int], split: str = "train", dtype: str = "uint16") -> Path:
    """Write shards like llm.c's data_common.py: 256 int32, of which three have a meaning, then the tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.split(np.array(tokens), sorted(cuts))):
        head = np.zeros(256, "<i4")
        head[:3] = (*((20240520, 1) if dtype == "uint16" else (20240801, 7)), len(part))
        (folder / f"{split}_{number:06}.bin").write_bytes(head.tobytes() + part.astype(DTYPES[dtype]).tobytes())
    return folder


def documents(tokens: list[int]) -> list[tuple[int, ...]]:
    """Return the documents between end-of-text ids in order, including empty ones."""
    found: list[list[int]] = [[]]
    for token in tokens:
        if token == END:
            found.append([])
        else:
            found[-1].append(token)
    return [tuple(document) for document in found]


def passages(tokens: list[int]) -> list[tuple[int, ...]]:
    windows = [tuple(tokens[i : i + PASSAGE]) for i in range(len(tokens) - PASSAGE + 1)]
    return [window for window in windows if END not in window]


def repeated(pieces: list[tuple[int, ...]]) -> list[tuple[int, ...]]:
    return [piece for i, piece in enumerate(pieces) if piece in pieces[:i]]


@st.composite
def files_of_tokens(draw, min_size=1):
    """Draw tokens with few different ids, so that many pieces are repeated, and the places to cut them into files."""
    tokens = draw(st.lists(st.integers(0, 3), min_size=min_size, max_size=120))
    cuts = draw(st.lists(st.integers(1, max(1, len(tokens) - 1)), max_size=3, unique=True)) if len(tokens) > 1 else []
    return tokens, cuts


@settings(deadline=None, max_examples=80)
@given(
    train=files_of_tokens(),
    val=files_of_tokens(),
    chunk=st.integers(1, 40),
    samples=st.integers(0, 4),
    dtype=st.sampled_from(["uint16", "uint32"]),
)
def test_agrees_with_plain_python_for_any_files_and_chunks(tmp_path_factory, train, val, chunk, samples, dtype):
    folder = tmp_path_factory.mktemp("tokens")
    read = {}
    for split, (tokens, cuts) in (("train", train), ("val", val)):
        files = TokenFiles(write(folder, tokens, cuts, split, dtype), split)
        found, pieces = read_split(
            files,
            end_of_text=END,
            vocab_size=3,
            samples=samples,
            chunk_tokens=chunk,
            passage_tokens=PASSAGE,
        )
        read[split] = pieces
        every = documents(tokens)
        full = [document for document in every if document]

        assert (found.tokens, found.dtype, found.max_id) == (len(tokens), dtype, max(tokens))
        assert found.token_counts.tolist() == [tokens.count(i) for i in range(max(tokens) + 1)]
        assert found.ids_in_use == len(set(tokens))
        assert found.most_frequent(9) == [i for i, _ in sorted(Counter(tokens).items(), key=lambda x: (-x[1], x[0]))]
        assert found.above(3) == tokens.count(3)
        assert found.first_too_large == (tokens.index(3) if 3 in tokens else None)
        paths = split_files(folder, split, None)
        assert [file.sha256 for file in found.files] == [
            hashlib.sha256(path.read_bytes()).hexdigest() for path in paths
        ]
        assert (found.sha256, found.bytes) == (
            hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest(),
            sum(path.stat().st_size for path in paths),
        )

        assert found.lengths is not None
        assert dict(zip(found.lengths.lengths.tolist(), found.lengths.documents.tolist(), strict=True)) == Counter(
            map(len, full)
        )
        assert found.empty_documents == sum(not document for document in every[1:-1])
        again = pieces.documents.repeats()
        assert (again.pieces, again.tokens, again.looked_at) == (len(full), sum(map(len, full)), 1)
        assert again.repeated == len(repeated(full))
        assert again.repeated_tokens == sum(map(len, repeated(full)))
        again = pieces.passages.repeats()
        assert (again.pieces, again.repeated) == (len(passages(tokens)), len(repeated(passages(tokens))))

        begins = [i for i, token in enumerate(tokens) if token != END and (i == 0 or tokens[i - 1] == END)]
        assert set(found.starts) <= set(begins)
        assert bool(found.starts) == bool(samples and begins)
        assert len(set(found.starts)) == len(found.starts) <= samples

    in_train = read["val"].documents.repeats_of(read["train"].documents)
    known = set(documents(train[0]))
    leaked = [document for document in documents(val[0]) if document and document in known]
    assert (in_train.repeated, in_train.repeated_tokens) == (len(leaked), sum(map(len, leaked)))
    in_train = read["val"].passages.repeats_of(read["train"].passages)
    assert in_train.repeated == sum(passage in set(passages(train[0])) for passage in passages(val[0]))


def comparable(found: SplitStatistics) -> list[object]:
    assert found.lengths is not None
    lengths = [found.lengths.lengths.tolist(), found.lengths.documents.tolist()]
    return [found.token_counts.tolist(), found.starts, found.empty_documents, *lengths]


def test_files_and_chunks_change_nothing(tmp_path):
    """They do not even change which documents and passages are checked if there are too many to check all."""
    generator = np.random.default_rng(0)
    tokens = np.minimum(generator.zipf(1.3, 30_000), 3_000)
    tokens[generator.random(30_000) < 0.02] = END
    results = []
    for number, (cuts, chunk) in enumerate([([], 1 << 18), ([17, 9_000, 9_001], 1_000), ([12_345], 77)]):
        files = TokenFiles(write(tmp_path / str(number), tokens.tolist(), cuts), "train")
        found, pieces = read_split(
            files,
            end_of_text=END,
            vocab_size=None,
            samples=5,
            chunk_tokens=chunk,
            passage_tokens=4,
            most_documents=100,
            most_passages=1_000,
        )
        results.append([*comparable(found), pieces.documents.repeats(), pieces.passages.repeats()])
    assert results[0] == results[1] == results[2]
    *_, few_documents, few_passages = results[0]
    assert 50 < few_documents.pieces <= 100
    assert few_documents.looked_at == 2**-3
    assert 500 < few_passages.pieces <= 1_000


def test_samples_are_spread_and_chosen_by_the_seed(tmp_path):
    tokens = np.tile([5, 6, 7, 8, END], 2_000)
    files = TokenFiles(write(tmp_path, tokens.tolist(), []), "train")

    def starts(seed: int, end_of_text: int | None = END) -> tuple[int, ...]:
        return read_split(files, end_of_text=end_of_text, vocab_size=None, samples=4, seed=seed)[0].starts

    for found in (starts(0), starts(1), starts(0, end_of_text=None)):
        assert [start // 2_500 for start in found] == [0, 1, 2, 3]
    assert starts(0) == starts(0) != starts(1)
    assert all(tokens[start] == 5 for start in starts(1))


def test_too_many_pieces_are_estimated():
    """A tenth of the pieces are repeated, a fifth of the other split's too; an eighth of all pieces shows it."""
    generator = np.random.default_rng(0)
    hashes = generator.integers(0, 1 << 64, 80_000, np.uint64)
    train, val = HashSubset(15_000), HashSubset(20_000)
    for part in np.array_split(np.concatenate([hashes, hashes[:8_000]]), 13):
        train.add(part, np.full(len(part), 7))
    other = np.concatenate([hashes[:6_000], generator.integers(0, 1 << 64, 24_000, np.uint64)])
    val.add(other, np.full(len(other), 7))
    repeats, in_train = train.repeats(), val.repeats_of(train)
    assert repeats.looked_at == in_train.looked_at == 2**-3
    assert repeats.share == pytest.approx(1 / 11, abs=0.01)
    assert repeats.share_of_tokens == repeats.share
    assert in_train.share == pytest.approx(0.2, abs=0.02)
    assert in_train.pieces == sum(int(h) < 1 << 61 for h in other)


@given(tokens=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=40), data=st.data())
def test_a_span_has_the_same_hash_at_any_position(tokens, data):
    cut = data.draw(st.integers(0, len(tokens)))
    before = data.draw(st.lists(st.integers(0, 2**32 - 1), max_size=9))

    def hash_of(span: list[int], before: list[int] = []) -> int:  # noqa: B006
        reader = SpanHash(64)
        reader.read(np.array(before + span, np.uint32))
        return int(reader.spans(np.array([len(before)]), np.array([len(before) + len(span)]))[0])

    assert hash_of(tokens) == hash_of(tokens, before) == joined_hash(hash_of(tokens[:cut]), cut, hash_of(tokens[cut:]))


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=20), train=st.lists(st.integers(0, 50), max_size=20))
def test_entropy_and_unigram_loss_agree_with_plain_python(counts, train):
    vocab_size = 20
    counts[0] += 1
    tokens = [i for i, count in enumerate(counts) for _ in range(count)]
    expected = -sum(math.log(counts[token] / len(tokens)) for token in tokens) / len(tokens)
    assert entropy(np.array(counts)) == pytest.approx(expected, abs=1e-12)
    known = dict(enumerate(train))
    total = sum(train) + vocab_size
    expected = -sum(math.log((known.get(token, 0) + 1) / total) for token in tokens) / len(tokens)
    assert unigram_loss(np.array(counts), np.array(train, np.int64), vocab_size) == pytest.approx(expected)


def test_a_vocabulary_of_billions_needs_no_memory():
    counts = np.array([3, 1])
    assert unigram_loss(counts, counts, 1 << 32) == pytest.approx(
        math.log(2**32 + 4) - (3 * math.log(4) + math.log(2)) / 4
    )
    read = TokenCounts(1 << 32)
    read.read(np.array([5, 4_000_000_000], "<u4"))
    assert (len(read.counts), read.beyond) == (6, 1)


@settings(deadline=None, max_examples=40)
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60), share=st.sampled_from([0.05, 0.5, 0.95]))
def test_lengths_agree_with_numpy(tmp_path_factory, lengths, share):
    tokens = [token for length in lengths for token in [*[9] * length, END]]
    files = TokenFiles(write(tmp_path_factory.mktemp("lengths"), tokens, []), "train")
    found = read_split(files, end_of_text=END, vocab_size=None, chunk_tokens=100)[0].lengths
    assert found is not None
    assert found.mean == pytest.approx(np.mean(lengths))
    assert found.quantile(share) == np.quantile(lengths, share, method="inverted_cdf")
    assert found.longer_than(10) == sum(length > 10 for length in lengths)


def test_a_huge_id_and_a_huge_document_need_no_counters(tmp_path):
    tokens = [7] * (MOST_LENGTHS + 5) + [END, 2**32 - 1, MOST_IDS, END, 7]
    files = TokenFiles(write(tmp_path, tokens, [], dtype="uint32"), "train")
    found, _ = read_split(files, end_of_text=END, vocab_size=100)
    assert found.lengths is not None
    assert found.lengths.lengths.tolist() == [1, 2, MOST_LENGTHS + 5]
    assert (found.beyond, found.above(100), found.max_id) == (2, 2, 2**32 - 1)
    assert found.first_too_large == MOST_LENGTHS + 6
    assert len(found.token_counts) < MOST_IDS
