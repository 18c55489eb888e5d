"""The order of samples, as pure functions of (sample number, seed, split). Any sample is reached in O(1).

A change to this module that alters any order must also change `ORDER_VERSION`.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

ORDER_VERSION = 1
ROUNDS = 12  # with 8, a chi-squared test over all orders of five elements fails

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
    """Apply the finaliser of Steele et al., "Fast splittable pseudorandom number generators" (2014), modulo 2^64."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(indices: Int64s, n: int, *, seed: int, stream: str, epoch: int) -> Int64s:
    """Return where a pseudo-random permutation of range(n) sends each index, in O(1) memory.

    An additive Feistel network on Z_a × Z_b with a ≈ b ≈ √n is a bijection of range(a·b) by construction. An
    output ≥ n is fed in again until it is below n (Black and Rogaway, "Ciphers with arbitrary finite domains",
    2002). On average this needs less than one extra pass.
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
    """Return offsets of samples first … first+count-1: every whole block once per epoch, each epoch in a new order."""
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
    # Only raw words, because numpy's Generator methods may change between versions. A counter step makes four words.
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
    """Return the offsets of blocks in file order; after the last block, the first one follows again."""
    samples = np.arange(first, first + count, dtype=np.int64)
    return np.asarray(samples % block_count(tokens, block_size) * block_size, dtype=np.int64)


def block_count(tokens: int, block_size: int) -> int:
    """Return the number of whole blocks of `block_size` inputs that each have a next token as target."""
    return (tokens - 1) // block_size


def evenly_spaced(numbers: Int64s, count: int, blocks: int) -> Int64s:
    """Return the block of each of the given numbers below `count`: the middle one of each `count`-th of all blocks."""
    return np.asarray((2 * numbers + 1) * blocks // (2 * count), dtype=np.int64)


def interleave(shares: Sequence[int]) -> Int64s:
    """Return the source of each of sum(shares) samples: source k comes `shares[k]` times, evenly spread.

    The first n samples contain n · shares[k] / sum(shares) samples of source k, to within 1 - 1 / (2K - 2) for K
    sources. This also holds if the result is repeated. Source: Tijdeman, "The chairman assignment problem" (1980).
    """
    total, sources = sum(shares), range(len(shares))
    slack = max(2 * len(shares) - 2, 1)
    counts = [0] * len(shares)
    chosen = np.empty(total, np.int64)
    for n in range(total):
        # How far each source falls behind its share if it is not chosen now, in units of 1 / total samples.
        lags = [shares[k] * (n + 1) - counts[k] * total for k in sources]
        due = [k for k in sources if lags[k] * slack >= total]
        # Choose the source with the earliest deadline.
        k = min(due, key=lambda k: ((total * (slack - 1) - lags[k] * slack) / shares[k], k))
        chosen[n] = k
        counts[k] += 1
    return chosen


Order = Callable[..., Int64s]
ORDERS: Mapping[str, Order] = {"shuffle": shuffle, "random": random, "sequential": sequential}
