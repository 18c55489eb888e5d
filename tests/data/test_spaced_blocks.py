"""Tests that an evaluation of a part of a split reads the same, evenly spaced tokens, whatever the seed and batch."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.numbered_tokens import loader, write

from lmtrain.data.loader import IGNORE
from lmtrain.data.mixture import Mixture
from lmtrain.data.order import evenly_spaced


def counted_targets(batches):
    """Return the targets of all batches in order, after a check that every batch is full."""
    batches = list(batches)
    assert len({x.shape for x, _ in batches}) == 1
    return torch.cat([y[y != IGNORE] for _, y in batches]).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write(tmp_path_factory.mktemp("spaced"), train=np.arange(1_000), val=np.arange(2_003) % 60_000)


@given(blocks=st.integers(1, 5_000), count=st.integers(1, 5_000))
def test_blocks_are_spread_over_the_whole_split_to_within_one(blocks, count):
    found = evenly_spaced(np.arange(count), count, blocks)
    ideal = (np.arange(count) + 0.5) * blocks / count
    assert np.all((found <= ideal) & (ideal < found + 1))
    if count <= blocks:
        assert len(set(found.tolist())) == count
    else:  # repeated equally often
        times = np.bincount(found, minlength=blocks)
        assert times.max() - times.min() <= 1


@pytest.mark.parametrize("order", ["shuffle", "random", "sequential"])
def test_neither_seed_nor_batch_size_nor_order_changes_the_tokens(folder, order):
    expected = counted_targets(loader(folder, 1, 8, split="val", seed=0).spaced_blocks(37))
    assert len(expected) == 37 * 8
    for seed in (0, 1, 1337):
        for batch_size in (2, 3, 37, 40):
            read = loader(folder, batch_size, 8, split="val", seed=seed, order=order)
            assert counted_targets(read.spaced_blocks(37)) == expected
    starts = np.array(expected[::8]) - 1
    assert np.all(np.diff(np.diff(starts) // 8) <= 1)
    assert starts[0] < 2_003 / 37
    assert starts[-1] > 2_003 * 36 / 37 - 8


def test_inputs_are_one_token_before_their_targets(folder):
    for x, y in loader(folder, 4, 8, split="val").spaced_blocks(10):
        kept = y != IGNORE
        assert torch.equal(x[kept] + 1, y[kept])


def test_a_part_as_large_as_the_split_is_the_whole_split(folder):
    read = loader(folder, 16, 8, split="val")
    assert counted_targets(read.spaced_blocks(250)) == list(range(1, 2_003))
    assert read.measured(250) == read.measured(None) == {"selection": "whole split", "tokens": 2_002}
    assert read.measured(249) == {"selection": "evenly spaced", "tokens": 249 * 8}
    assert len(counted_targets(read.spaced_blocks(249))) == 249 * 8


def test_an_id_above_the_vocabulary_is_refused(folder):
    with pytest.raises(ValueError, match=r"val\.bin: token .* not below the vocabulary size of 1,500"):
        list(loader(folder, 4, 8, split="val", vocab_size=1_500).spaced_blocks(30))


def test_a_mixture_reads_each_source_by_its_weight_and_evenly_spaced(tmp_path):
    paths = {
        "a": str(write(tmp_path / "a", val=np.arange(1_001))),
        "b": str(write(tmp_path / "b", val=10_000 + np.arange(201))),
    }
    found = set()
    for seed, batch_size in ((1, 4), (2, 7), (3, 40)):
        mixture = Mixture(paths, {"a": 3, "b": 1}, "val", batch_size, 10, seed, vocab_size=20_000)
        found.add(tuple(counted_targets(mixture.spaced_blocks(40))))
    (targets,) = found
    firsts = np.array(targets[::10]) - 1
    assert mixture.measured(40) == {"selection": "evenly spaced", "tokens": 400, "weights": {"a": 3, "b": 1}}
    assert mixture.measured(None) == {"selection": "whole split", "tokens": 1_200}
    a, b = firsts[firsts < 10_000], firsts[firsts >= 10_000] - 10_000
    assert (a // 10).tolist() == evenly_spaced(np.arange(30), 30, 100).tolist()
    assert (b // 10).tolist() == evenly_spaced(np.arange(10), 10, 20).tolist()
