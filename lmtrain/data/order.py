"""The order samples are read in: pure functions of (sample number, seed, split), O(1) to reach any of them.

`ORDER_VERSION` stands for everything here: a change that alters any order must change it.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

ORDER_VERSION = 1
ROUNDS = 12  # at 8 a chi-squared test over all orders of five elements fails

UInt64s = npt.NDArray[np.uint64]
Int64s = npt.NDArray[np.int64]


def derive_keys(*parts: object, count: int) -> UInt64s:
    """Return `count` independent 64-bit keys from the values that identify a stream."""
    material = repr((ORDER_VERSION, *parts)).encode()
    blocks = [
        hashlib.blake2b(material, digest_size=64, salt=i.to_bytes(8, "little")).digest() for i in range(-(-count // 8))
    ]
    return np.frombuffer(b"".join(blocks), dtype="<u8")[:count].astype(np.uint64)


def _splitmix64(x: UInt64s) -> UInt64s:
    """The finaliser of Steele et al., "Fast splittable pseudorandom number generators" (2014); wraps on purpose."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: Int64s, n: int, *, seed: int, stream: str, epoch: int) -> Int64s:
    """Return where a pseudo-random permutation of range(n) sends each index, in O(1) memory.

    An additive Feistel network on Z_a × Z_b with a ≈ b ≈ √n is a bijection of range(a·b) by construction; an
    output ≥ n walks on along its cycle until it is inside (Black and Rogaway, "Ciphers with arbitrary finite
    domains", 2002), which takes less than one extra pass on average.
    """
    side = math.isqrt(n - 1) + 1
    a, b = np.uint64(side), np.uint64(-(-n // side))
    round_keys = derive_keys("shuffle", n, seed, stream, epoch, count=ROUNDS)
    result = indices.astype(np.uint64)
    walking = np.arange(len(result))
    while len(walking):
        left, right = np.divmod(result[walking], b)
        for i in range(0, ROUNDS, 2):
            left = (left + _splitmix64(right ^ round_keys[i]) % a) % a
            right = (right + _splitmix64(left ^ round_keys[i + 1]) % b) % b
        result[walking] = left * b + right
        walking = walking[result[walking] >= n]
    return result.astype(np.int64)


def shuffle(first: int, count: int, *, tokens: int, block_size: int, seed: int, stream: str) -> Int64s:
    """Return offsets of samples first … first+count-1: every whole block once an epoch, in an order of its own."""
    n = block_count(tokens, block_size)
    samples = np.arange(first, first + count)
    offsets = np.empty(count, np.int64)
    for epoch in range(first // n, (first + count - 1) // n + 1):
        inside = samples // n == epoch
        offsets[inside] = permute(samples[inside] % n, n, seed=seed, stream=stream, epoch=epoch)
    return offsets * block_size


def random(first: int, count: int, *, tokens: int, block_size: int, seed: int, stream: str) -> Int64s:
    """Return uniform offsets with replacement: word number `sample` of a Philox stream, scaled by multiply-shift."""
    n = tokens - block_size
    # Raw words alone: numpy's Generator methods may change between versions. A counter step makes four words.
    generator = np.random.Philox(key=derive_keys("random", seed, stream, count=2), counter=first // 4)
    words = generator.random_raw(first % 4 + count)[first % 4 :].astype(np.uint64)
    # floor(word · n / 2^64) in 32-bit halves, exact for n < 2^63.
    low, high = np.uint64(n & 0xFFFFFFFF), np.uint64(n >> 32)
    word_low, word_high = words & np.uint64(0xFFFFFFFF), words >> np.uint64(32)
    shift = np.uint64(32)
    middle = word_high * low + ((word_low * low) >> shift)
    carry = (middle & np.uint64(0xFFFFFFFF)) + word_low * high
    scaled: UInt64s = word_high * high + (middle >> shift) + (carry >> shift)
    return scaled.astype(np.int64)


def sequential(first: int, count: int, *, tokens: int, block_size: int, seed: int, stream: str) -> Int64s:
    """Return the offsets of blocks in file order, from the start again after the last."""
    samples = np.arange(first, first + count, dtype=np.int64)
    return np.asarray(samples % block_count(tokens, block_size) * block_size, dtype=np.int64)


def block_count(tokens: int, block_size: int) -> int:
    """Return the number of whole blocks of `block_size` inputs that each have a next token as target."""
    return (tokens - 1) // block_size


def interleave(shares: Sequence[int]) -> Int64s:
    """Return which source each of sum(shares) samples comes from: source k `shares[k]` times, evenly spread.

    Among the first n there are n · shares[k] / sum(shares) of source k, to within 1 - 1 / (2K - 2) for K sources; so
    it is when the whole repeats. Source: Tijdeman, "The chairman assignment problem" (1980).
    """
    total, sources = sum(shares), range(len(shares))
    slack = max(2 * len(shares) - 2, 1)
    counts = [0] * len(shares)
    chosen = np.empty(total, np.int64)
    for n in range(total):
        # How far each one lags behind its share, in 1 / total samples, if it is not taken now.
        lags = [shares[k] * (n + 1) - counts[k] * total for k in sources]
        due = [k for k in sources if lags[k] * slack >= total]
        k = min(due, key=lambda k: ((total * (slack - 1) - lags[k] * slack) / shares[k], k))  # the first to be late
        chosen[n] = k
        counts[k] += 1
    return chosen


Order = Callable[..., Int64s]
ORDERS: Mapping[str, Order] = {"shuffle": shuffle, "random": random, "sequential": sequential}
