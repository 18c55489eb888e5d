"""The loader on real files: the same samples for any division into batches, terabytes, bounded memory, mistakes."""

import os
import subprocess
import sys
import threading
import time
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.numbered_tokens import loader, write

from lmtrain.data import token_files
from lmtrain.data.loader import IGNORE, ORDER_CHUNK
from lmtrain.data.order import ORDERS

# Batches


@pytest.mark.parametrize("order", [*ORDERS])
@pytest.mark.parametrize(("dtype", "offset"), [(None, 0), ("uint16", 64_000), ("uint32", 70_000)])
def test_a_batch_is_inputs_and_the_tokens_after_them(tmp_path, order, dtype, offset):
    tokens = np.arange(offset, offset + 1_003)
    batches = loader(write(tmp_path, dtype, train=tokens), order=order)
    for index in (0, 1, 40):
        x, y = batches.batch(index)
        assert x.dtype == y.dtype == torch.int64
        assert x.shape == y.shape == (4, 8)
        assert x.is_contiguous()
        assert y.is_contiguous()
        assert torch.equal(x, x[:, :1] + torch.arange(8))  # tokens count upwards
        assert torch.equal(y, x + 1)
        assert x.min() >= offset
        assert y.max() < offset + 1_003


@pytest.mark.parametrize("order", [*ORDERS])
def test_rows_follow_the_order(long, order):
    batches = loader(long, batch_size=3, block_size=2, order=order)
    offsets = ORDERS[order](0, 9_999, tokens=20_001, block_size=2, seed=1337, stream="train")
    firsts = torch.cat([batches.batch(index)[0][:, 0] for index in range(3_333)])  # across two edges of ORDER_CHUNK
    assert ORDER_CHUNK % 3
    assert ORDER_CHUNK * 2 < 9_999
    assert firsts.tolist() == offsets.tolist()


@pytest.mark.parametrize("order", [*ORDERS])
@settings(deadline=None)
@given(index=st.integers(0, 3_000) | st.integers(ORDER_CHUNK // 8 - 1, ORDER_CHUNK // 8 + 1) | st.integers(0, 10**12))
def test_a_global_batch_has_the_same_samples_for_any_micro_batch_size(long, order, index):
    x, y = loader(long, batch_size=8, block_size=2, order=order).batch(index)
    for batch_size in (4, 2, 1):
        cut = loader(long, batch_size=batch_size, block_size=2, order=order)
        parts = 8 // batch_size
        micro = [cut.batch(index * parts + part) for part in range(parts)]
        assert torch.equal(torch.cat([part for part, _ in micro]), x)
        assert torch.equal(torch.cat([part for _, part in micro]), y)


@pytest.mark.parametrize("order", [*ORDERS])
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_all_ranks_together_read_the_samples_of_a_single_process(long, order, ranks):
    alone = loader(long, batch_size=24, block_size=2, order=order)
    shared = [loader(long, batch_size=24 // ranks, block_size=2, order=order) for _ in range(ranks)]
    for step in (0, 7, 10**9):
        dealt = [rank_loader.batch(step * ranks + rank) for rank, rank_loader in enumerate(shared)]
        for whole, parts in zip(alone.batch(step), zip(*dealt, strict=True), strict=True):
            assert torch.equal(torch.cat(parts), whole)


def test_a_batch_may_be_larger_than_a_chunk_of_the_order(long):
    size = 2 * ORDER_CHUNK + 5
    large = loader(long, batch_size=size, block_size=2)
    small = loader(long, batch_size=1, block_size=2)
    x, _ = large.batch(1)
    assert torch.equal(x, torch.cat([small.batch(sample)[0] for sample in range(size, 2 * size)]))


def test_shuffle_shows_each_block_once_per_epoch(numbered):
    samples = loader(numbered, batch_size=1)
    assert samples.samples.blocks == 125
    epochs = [[samples.batch(epoch * 125 + i)[0][0, 0].item() for i in range(125)] for epoch in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == [*range(0, 1_000, 8)]
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.mark.parametrize("order", [*ORDERS])
def test_a_batch_depends_only_on_its_index(long, order):
    forward = loader(long, batch_size=7, block_size=2, order=order)
    expected = [forward.batch(index) for index in range(2_000)]
    jumping = loader(long, batch_size=7, block_size=2, order=order)
    for index in np.random.default_rng(0).integers(0, 2_000, 300).tolist() * 2:
        x, y = jumping.batch(index)
        assert torch.equal(x, expected[index][0])
        assert torch.equal(y, expected[index][1])


@pytest.mark.slow
def test_threads_that_share_a_loader_get_the_right_batches(long):
    jumps = [np.random.default_rng(seed).integers(0, 1_500, 60).tolist() for seed in range(4)]
    expected = {index: loader(long, batch_size=8, block_size=2).batch(index)[0] for index in {*chain(*jumps)}}
    shared, wrong = loader(long, batch_size=8, block_size=2), []

    def read(indices: list[int]) -> None:
        wrong.extend(index for index in indices if not torch.equal(shared.batch(index)[0], expected[index]))

    threads = [threading.Thread(target=read, args=(indices,)) for indices in jumps]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_splits_and_seeds_have_different_orders(tmp_path):
    folder = write(tmp_path, train=np.arange(1_003), val=np.arange(1_003))
    first = loader(folder, batch_size=100).batch(0)[0]
    assert not torch.equal(first, loader(folder, batch_size=100, split="val").batch(0)[0])
    assert not torch.equal(first, loader(folder, batch_size=100, seed=1338).batch(0)[0])
    assert torch.equal(first, loader(folder, batch_size=100).batch(0)[0])


def test_a_batch_is_a_copy_that_may_be_written_to(numbered):
    batches = loader(numbered)
    x, y = batches.batch(0)
    before = x.clone()
    x.zero_()
    y.zero_()
    assert torch.equal(batches.batch(0)[0], before)


# The whole split


@settings(deadline=None)
@given(tokens=st.integers(4, 300), batch_size=st.integers(1, 5), block_size=st.integers(1, 3))
def test_whole_split_has_every_target_once_in_full_batches(tmp_path_factory, tokens, batch_size, block_size):
    folder = write(tmp_path_factory.mktemp("split"), val=np.arange(7, 7 + tokens))
    batches = [*loader(folder, batch_size, block_size, split="val").whole_split()]
    assert {part.shape for batch in batches for part in batch} == {(batch_size, block_size)}
    assert {part.dtype for batch in batches for part in batch} == {torch.int64}
    x, y = (torch.cat([batch[side].flatten() for batch in batches]) for side in (0, 1))
    assert y[: tokens - 1].tolist() == [*range(8, 7 + tokens)]
    assert x[: tokens - 1].tolist() == [*range(7, 6 + tokens)]
    assert (y[tokens - 1 :] == IGNORE).all()
    assert ((x >= 0) & (x < 7 + tokens)).all()  # the padding consists of valid ids
    assert len(batches) == -(-(tokens - 1) // (batch_size * block_size))


# Large files


def anonymous_mb() -> float:
    """Return the memory of this process without mapped files, whose pages the kernel may load and drop at any time."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("RssAnon"))


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


@pytest.mark.parametrize("order", [*ORDERS])
def test_a_terabyte_opens_at_once(tmp_path, order):
    (tmp_path / "train.bin").touch()
    os.truncate(tmp_path / "train.bin", 10**12)  # sparse: it needs no space on the disk
    before, start = resident_mb(), time.process_time()
    batches = loader(tmp_path, batch_size=16, block_size=1024, order=order)
    assert len(batches.fingerprint) == 64
    assert time.process_time() - start < 1  # reading it would take minutes
    for index in (0, 10**9 // 17, 10**15 // 19):
        assert batches.batch(index)[0].shape == (16, 1024)
    assert resident_mb() - before < 50


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [None, 16 * 2**20])
def test_memory_does_not_grow_over_a_hundred_thousand_batches(tmp_path, monkeypatch, mapped):
    if mapped:  # the file counts as large, so its pages are released
        monkeypatch.setattr(token_files, "MAPPED_BYTES", mapped)
    (tmp_path / "train.bin").touch()
    os.truncate(tmp_path / "train.bin", 64 * 2**20)
    batches = loader(tmp_path, batch_size=2, block_size=64)
    for index in range(4_000):
        batches.batch(index)
    anonymous, resident = anonymous_mb(), resident_mb()
    for index in range(4_000, 104_000):
        batches.batch(index)
    assert anonymous_mb() - anonymous < 10
    if mapped:
        assert resident_mb() - resident < 40


# With and without meta.json


def test_meta_json_gives_the_bytes_per_token(tmp_path):
    described = loader(write(tmp_path, "uint16", train=np.arange(100), val=np.arange(50)), split="val")
    assert described.bytes_per_token == 4.0
    assert described.fingerprint == "of val"


def test_a_bare_folder_has_no_bytes_per_token(numbered):
    bare = loader(numbered)
    assert bare.bytes_per_token is None


def test_a_bare_folder_has_a_fingerprint_of_its_contents(tmp_path):
    tokens = np.arange(1_000)
    one, same = (loader(write(tmp_path / name, train=tokens)).fingerprint for name in ("one", "same"))
    assert one == same
    for changed in (tokens + 1, tokens[:-1], np.append(tokens[:-1], 5)):
        assert loader(write(tmp_path / "other", train=changed)).fingerprint != one


# Mistakes


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere/train\.bin: no such file"):
        loader(tmp_path / "nowhere")


def test_a_missing_split_is_named_with_the_existing_ones(tmp_path):
    write(tmp_path, train=np.arange(100), val=np.arange(100))
    with pytest.raises(ValueError, match=r"test\.bin: no such file.*train, val"):
        loader(tmp_path, split="test")


@pytest.mark.parametrize(("content", "size"), [(b"", "0 bytes"), (b"abc", "3 bytes")])
def test_a_file_that_is_empty_or_of_odd_size_is_named(tmp_path, content, size):
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(ValueError, match=rf"train\.bin: {size}.*uint16"):
        loader(tmp_path)


def test_a_file_that_ends_with_half_a_uint32_is_named(tmp_path):
    write(tmp_path, "uint32", train=np.arange(100))
    os.truncate(tmp_path / "train.bin", 398)
    with pytest.raises(ValueError, match=r"train\.bin: 398 bytes.*uint32"):
        loader(tmp_path)


def test_a_file_shorter_than_meta_json_says_is_named(tmp_path):
    write(tmp_path, "uint16", train=np.arange(1_100))
    os.truncate(tmp_path / "train.bin", 2 * 1_000)
    with pytest.raises(ValueError, match=r"train\.bin: has 1,000 tokens, but meta\.json says 1,100"):
        loader(tmp_path)


def test_a_split_that_meta_json_does_not_know_is_named(tmp_path):
    write(tmp_path, "uint16", train=np.arange(100))
    write(tmp_path, val=np.arange(100))
    with pytest.raises(ValueError, match=r"val\.bin"):
        loader(tmp_path, split="val")


def test_for_a_split_too_short_for_a_block_the_message_names_the_key_and_the_limit(tmp_path):
    write(tmp_path, train=np.arange(8))
    with pytest.raises(ValueError, match=r"data\.block_size=8.*train\.bin.*8 tokens.*at most 7"):
        loader(tmp_path, block_size=8)
    assert loader(tmp_path, block_size=7, batch_size=1).batch(5)[1].tolist() == [[1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("dtype", [None, "uint16"])
def test_an_id_beyond_the_vocabulary_is_named_with_file_and_position(tmp_path, dtype):
    tokens = np.arange(1_000) % 50
    tokens[777] = 50
    batches = loader(write(tmp_path, dtype, train=tokens), order="sequential", vocab_size=50)
    for index in range(24):  # each with 32 tokens and one more target
        batches.batch(index)
    message = r"train\.bin: token 777 is 50, not below the vocabulary size of 50"
    with pytest.raises(ValueError, match=message):
        batches.batch(24)
    with pytest.raises(ValueError, match=message):
        list(batches.whole_split())
    assert loader(tmp_path, order="sequential", vocab_size=51).batch(24)[0].max() == 50


def test_ids_must_be_in_the_vocabulary_of_meta_json(tmp_path):
    folder = write(tmp_path, "uint16", train=np.arange(100))
    tokens = np.arange(100, dtype="<u2")
    tokens[60] = 60_000
    tokens.tofile(folder / "train.bin")
    with pytest.raises(ValueError, match=r"token 60 is 60000, not below the vocabulary size of 100"):
        list(loader(folder).whole_split())


@pytest.mark.slow
def test_a_file_that_becomes_shorter_is_an_error_and_not_a_crash(tmp_path):
    # In another process, because a bus error would kill this one.
    write(tmp_path, train=np.arange(60_000))
    script = f"""
import os
import numpy as np
from lmtrain.data.loader import TokenLoader
loader = TokenLoader({str(tmp_path)!r}, "train", 4, 64, seed=0)
loader.batch(0)
os.truncate({str(tmp_path / "train.bin")!r}, 10_000)
for read in (
    lambda: loader.batch(1000),  # the next few are read already
    lambda: list(loader.whole_split()),
    lambda: loader.samples.tokens.windows(np.array([50_000]), 10),
):
    try:
        read()
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.stdout.count("became shorter while it was read, from 120,000 to 10,000 bytes") == 3
    assert done.returncode == 0
