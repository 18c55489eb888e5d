"""The data orders are bijective, random enough, seekable and exact, and never change (golden vectors)."""

import itertools
import math
import timeit
from collections import Counter
from time import process_time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data import order
from lmtrain.data.order import ORDERS, block_count, derive_keys, permute, random, sequential, shuffle

QUANTILE_999 = {5: 20.5, 23: 49.7, 119: 173.6, 255: 330.5}  # quantiles of chi-squared, by degrees of freedom

seeds = st.integers(0, 2**63)
streams = st.sampled_from(["train", "val", ""])


def chi_squared(counts: np.ndarray) -> float:
    """Return chi-squared against the uniform distribution."""
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum())


def over_all_orders(n: int, samples: int) -> float:
    """Return chi-squared of the permutations of n elements from `samples` seeds."""
    seen = Counter(
        tuple(permute(np.arange(n), n, seed=seed, stream="train", epoch=0).tolist()) for seed in range(samples)
    )
    return chi_squared(np.array([seen[each] for each in itertools.permutations(range(n))]))


# The permutation


def test_permute_is_a_bijection_at_every_small_size():
    for n in range(1, 2_001):
        image = permute(np.arange(n), n, seed=n % 7, stream="train", epoch=n % 3)
        assert np.array_equal(np.sort(image), np.arange(n)), n


def inverse(image: np.ndarray, n: int, seed: int, epoch: int) -> np.ndarray:
    """Invert `permute` with Python's own integers, one round after the other, until the result is in range(n)."""
    side = math.isqrt(n - 1) + 1
    a, b = side, -(-n // side)
    round_keys = derive_keys("shuffle", n, seed, "train", epoch, count=order.ROUNDS).tolist()

    def mixed(x: int, key: int) -> int:
        x = ((x ^ key) + 0x9E3779B97F4A7C15) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return x ^ x >> 31

    def back(index: int) -> int:
        left, right = divmod(index, b)
        for i in reversed(range(0, order.ROUNDS, 2)):
            right = (right - mixed(left, round_keys[i + 1])) % b
            left = (left - mixed(right, round_keys[i])) % a
        return left * b + right

    indices = []
    for index in map(back, image.tolist()):
        while index >= n:
            index = back(index)
        indices.append(index)
    return np.array(indices)


@settings(deadline=None, max_examples=60)
@given(n=st.integers(2_000, 10**12) | st.integers(11, 39).map(lambda power: 2**power + 1), seed=seeds, data=st.data())
def test_every_block_is_reached_once_in_ranges_too_large_to_list(n, seed, data):
    # Each index is recovered from its image, and each block is the image of an index, so this is a bijection.
    points = np.array(data.draw(st.lists(st.integers(0, n - 1), min_size=20, max_size=20)))
    image = permute(points, n, seed=seed, stream="train", epoch=2)
    assert np.array_equal(inverse(image, n, seed, 2), points)
    assert np.array_equal(permute(inverse(points, n, seed, 2), n, seed=seed, stream="train", epoch=2), points)


@settings(deadline=None)
@given(n=st.integers(1, 5_000), seed=seeds, stream=streams, epoch=st.integers(0, 10**9))
def test_permute_is_a_bijection(n, seed, stream, epoch):
    image = permute(np.arange(n), n, seed=seed, stream=stream, epoch=epoch)
    assert image.dtype == np.int64
    assert np.array_equal(np.sort(image), np.arange(n))


@settings(deadline=None)
@given(
    n=st.integers(5_000, 10**12) | st.integers(0, 40).map(lambda power: 2**power + 5_000), seed=seeds, data=st.data()
)
def test_permute_stays_in_a_large_range_without_repeats(n, seed, data):
    first = data.draw(st.integers(0, n - 2_000))
    image = permute(np.arange(first, first + 2_000), n, seed=seed, stream="train", epoch=0)
    assert image.min() >= 0
    assert image.max() < n
    assert len(np.unique(image)) == 2_000


def test_the_image_of_an_index_does_not_depend_on_other_indices():
    indices = np.arange(1_000)
    whole = permute(indices, 1_000, seed=3, stream="train", epoch=1)
    assert np.array_equal(permute(indices[::-7], 1_000, seed=3, stream="train", epoch=1), whole[::-7])
    assert [permute(np.array([i]), 1_000, seed=3, stream="train", epoch=1).item() for i in (0, 999, 500)] == [
        whole[i] for i in (0, 999, 500)
    ]
    assert np.array_equal(indices, np.arange(1_000))  # the input is unchanged


@pytest.mark.slow
@pytest.mark.parametrize(("n", "samples"), [(3, 1_500), (4, 3_000), (5, 6_000)])
def test_all_orders_of_few_elements_are_equally_likely(n, samples):
    assert over_all_orders(n, samples) < QUANTILE_999[math.factorial(n) - 1]


@pytest.mark.slow
def test_too_few_rounds_are_detected(monkeypatch):
    monkeypatch.setattr(order, "ROUNDS", 8)
    assert over_all_orders(5, 6_000) > QUANTILE_999[119]


@pytest.mark.parametrize("n", [10_007, 2**16, 2**20, 10**9, 2**40, 10**12])
def test_permuted_neighbours_differ_in_parity_half_of_the_time(n):
    image = permute(np.arange(10_000), n, seed=1, stream="train", epoch=0)
    changes = np.mean(image[1:] % 2 != image[:-1] % 2)
    assert 0.48 < changes < 0.52  # four standard deviations
    assert 0.48 < np.mean(image[1:] > image[:-1]) < 0.52


@pytest.mark.parametrize("n", [9_973, 2**20, 10**9 + 7, 10**12])
def test_permuted_neighbours_are_independent(n):
    image = permute(np.arange(min(n, 40_000) // 2 * 2), n, seed=4, stream="train", epoch=0)
    sixteenth = image * 16 // n
    for distance in (1, 2):  # pairs that share no element, so that they are independent
        pairs = sixteenth[:-distance] * 16 + sixteenth[distance:]
        assert chi_squared(np.bincount(pairs[:: distance + 1], minlength=256)) < QUANTILE_999[255]


@pytest.mark.parametrize("n", [2**20, 10**9 + 7, 10**12])
def test_permuted_indices_are_spread_evenly(n):
    image = permute(np.arange(20_000), n, seed=2, stream="train", epoch=0)
    assert chi_squared(np.bincount(image * 256 // n, minlength=256)) < QUANTILE_999[255]
    assert chi_squared(np.bincount(image % 256, minlength=256)) < 1.1 * QUANTILE_999[255]  # n is not a multiple of 256


# Orders


@pytest.mark.parametrize(("tokens", "block_size", "expected"), [(641, 64, 10), (640, 64, 9), (65, 64, 1), (64, 64, 0)])
def test_a_block_has_a_target_for_each_input(tokens, block_size, expected):
    assert block_count(tokens, block_size) == expected


@settings(deadline=None)
@given(n=st.integers(1, 400), block_size=st.integers(1, 50), extra=st.integers(0, 49), seed=seeds, stream=streams)
def test_shuffle_reads_each_block_once_per_epoch(n, block_size, extra, seed, stream):
    tokens = n * block_size + 1 + min(extra, block_size - 1)
    offsets = shuffle(0, 3 * n, tokens=tokens, block_size=block_size, seed=seed, stream=stream).reshape(3, n)
    assert offsets.dtype == np.int64
    assert np.array_equal(np.sort(offsets), np.tile(np.arange(n) * block_size, (3, 1)))
    if n >= 50:
        assert not np.array_equal(offsets[0], offsets[1])
        assert not np.array_equal(offsets[1], offsets[2])
        assert not np.array_equal(offsets[0], np.sort(offsets[0]))


@settings(deadline=None)
@given(first=st.integers(0, 10**12), count=st.integers(1, 300), n=st.integers(1, 100), block_size=st.integers(1, 9))
def test_sequential_repeats_the_file(first, count, n, block_size):
    offsets = sequential(first, count, tokens=n * block_size + 1, block_size=block_size, seed=0, stream="train")
    assert offsets.dtype == np.int64
    assert offsets.tolist() == [sample % n * block_size for sample in range(first, first + count)]


@settings(deadline=None)
@given(
    tokens=st.integers(101, 10**4) | st.integers(2**32 - 50, 2**32 + 150) | st.integers(2**33, 2**62),
    first=st.integers(0, 1_000),
    seed=seeds,
    stream=streams,
)
def test_random_is_exact_arithmetic_on_the_words_of_philox(tokens, first, seed, stream):
    words = np.random.Philox(key=derive_keys("random", seed, stream, count=2)).random_raw(1_050)
    expected = [int(word) * (tokens - 100) >> 64 for word in words[first : first + 50]]
    offsets = random(first, 50, tokens=tokens, block_size=100, seed=seed, stream=stream)
    assert offsets.dtype == np.int64
    assert offsets.tolist() == expected


def test_random_is_exact_for_the_largest_words(monkeypatch):
    largest = np.array([2**64 - 1, 2**64 - 2**32, 2**32 - 1, 2**63, 1, 0], dtype=np.uint64)

    class Words:  # a test would be too short to find a seed with these words
        def __init__(self, key, counter):
            pass

        def random_raw(self, count):
            return largest[:count]

    monkeypatch.setattr(order.np.random, "Philox", Words)
    for n in (1, 2, 2**32 - 1, 2**32, 2**32 + 1, 2**61 - 1, 2**62, 2**63 - 2):
        offsets = random(0, 6, tokens=n + 1, block_size=1, seed=0, stream="train")
        assert offsets.tolist() == [int(word) * n >> 64 for word in largest], n


def test_random_is_uniform_and_reaches_both_ends():
    offsets = random(0, 100_000, tokens=256 + 64, block_size=64, seed=1, stream="train")
    assert (offsets.min(), offsets.max()) == (0, 255)  # the last window ends at the last token
    assert chi_squared(np.bincount(offsets, minlength=256)) < QUANTILE_999[255]
    pairs = offsets[::2] // 16 * 16 + offsets[1::2] // 16
    assert chi_squared(np.bincount(pairs, minlength=256)) < QUANTILE_999[255]


@settings(deadline=None)
@given(name=st.sampled_from([*ORDERS]), first=st.integers(0, 400), count=st.integers(1, 100), n=st.integers(1, 300))
def test_a_slice_equals_the_slice_of_a_longer_call(name, first, count, n):
    where = {"tokens": n * 4 + 3, "block_size": 4, "seed": 5, "stream": "train"}
    longer = ORDERS[name](0, 500, **where)
    assert np.array_equal(ORDERS[name](first, count, **where), longer[first : first + count])


@settings(deadline=None)
@given(name=st.sampled_from([*ORDERS]), far=st.integers(0, 10**12), cut=st.integers(1, 99))
def test_a_distant_slice_equals_its_parts(name, far, cut):
    where = {"tokens": 10**11, "block_size": 1024, "seed": 5, "stream": "train"}
    together = ORDERS[name](far, 100, **where)
    assert np.array_equal(together[:cut], ORDERS[name](far, cut, **where))
    assert np.array_equal(together[cut:], ORDERS[name](far + cut, 100 - cut, **where))
    assert together.min() >= 0
    assert together.max() + 1024 < 10**11


@pytest.mark.parametrize("name", [*ORDERS])
def test_any_sample_is_reached_in_constant_time(name):
    where = {"tokens": 10**12, "block_size": 1024, "seed": 5, "stream": "train"}
    near, far = (
        min(timeit.repeat(lambda first=first: ORDERS[name](first, 16, **where), timer=process_time, number=20))
        for first in (0, 10**15)
    )
    assert far < 10 * near  # the distance is 10^15 samples


@pytest.mark.parametrize("name", ["shuffle", "random"])
def test_seeds_and_splits_have_different_orders(name):
    where = {"tokens": 100_001, "block_size": 100}
    orders = {
        tuple(ORDERS[name](0, 1_000, seed=seed, stream=stream, **where).tolist())
        for seed in range(20)
        for stream in ("train", "val")
    }
    assert len(orders) == 40
    first, *others = (np.array(each) for each in orders)
    assert max(np.mean(first == other) for other in others) < 0.02  # by chance 0.001


def test_shuffle_and_random_do_not_share_a_stream():
    assert not np.array_equal(derive_keys("shuffle", 0, "train", count=2), derive_keys("random", 0, "train", count=2))
    assert np.array_equal(derive_keys("random", 0, "train", count=12)[:8], derive_keys("random", 0, "train", count=8))
    assert len(set(derive_keys("random", 0, "train", count=1_000).tolist())) == 1_000


# Sources of a mixture


@settings(deadline=None)
@given(weights=st.lists(st.integers(1, 40), min_size=1, max_size=6))
def test_interleaved_sources_keep_their_shares_at_every_moment(weights):
    total, sources = sum(weights), len(weights)
    chosen = np.tile(order.interleave(weights), 2)  # also across the repetition
    bound = 1 - 1 / (2 * sources - 2) if sources > 1 else 0.0  # Tijdeman's bound
    for k, weight in enumerate(weights):
        lead = np.append(0, np.cumsum(chosen == k)) - np.arange(2 * total + 1) * weight / total
        assert abs(lead).max() <= bound + 1e-9
        if sources == 2:
            assert lead.max() - lead.min() <= 1 + 1e-9  # to within one block in any window
    assert np.array_equal(np.bincount(chosen, minlength=sources), 2 * np.array(weights))


# Golden vectors, which change only together with ORDER_VERSION. To renew them, print the calls below.

SMALL = {"tokens": 641, "block_size": 64, "seed": 1337, "stream": "train"}
LARGE = {"tokens": 10**12, "block_size": 1024, "seed": 7, "stream": "val"}
GOLDEN = {
    "shuffle": (
        [
            0,
            448,
            384,
            512,
            192,
            576,
            256,
            64,
            320,
            128,
            64,
            256,
            320,
            128,
            512,
            192,
            384,
            448,
            576,
            0,
            448,
            576,
            0,
            192,
        ],
        [867149201408, 264699243520, 213462899712, 419575484416],
    ),
    "random": (
        [530, 184, 426, 118, 446, 552, 301, 275, 278, 561, 279, 15, 348, 524, 528, 152, 335, 233, 143, 327, 517, 512],
        [63226949537, 649799725082, 335496482098, 183978476592],
    ),
    "sequential": (
        [0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 0, 64, 128, 192, 256, 320, 384, 448, 512, 576, 0, 64, 128, 192],
        [24000001024, 24000002048, 24000003072, 24000004096],
    ),
}


@pytest.mark.parametrize("name", [*ORDERS])
def test_the_orders_are_those_of_version_1(name):
    assert order.ORDER_VERSION == 1
    assert ORDERS[name](0, len(GOLDEN[name][0]), **SMALL).tolist() == GOLDEN[name][0]
    assert ORDERS[name](10**9, 4, **LARGE).tolist() == GOLDEN[name][1]


def test_permutation_and_keys_are_those_of_version_1():
    image = permute(np.arange(12), 12, seed=0, stream="x", epoch=3)
    assert order.interleave([5, 3, 2]).tolist() == [0, 1, 0, 2, 0, 1, 0, 2, 1, 0]
    assert image.tolist() == [2, 0, 10, 9, 6, 1, 4, 7, 3, 11, 8, 5]
    assert derive_keys("random", 0, "t", count=3).tolist() == [
        4376309301614291492,
        16176895528255898925,
        10685607710752147435,
    ]
