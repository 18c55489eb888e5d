"""The search for a micro-batch size, with machines that are described by their speed and memory."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.config.batch_size import divisors
from lmtrain.micro_batch.search import TimedSize, choose, search


class Machine:
    """A device with a memory of `fits` sequences and seconds per sequence by micro-batch size."""

    def __init__(self, seconds: Callable[[int], float], fits: int) -> None:
        self.seconds, self.fits = seconds, fits
        self.tried: list[int] = []

    def measure(self, size: int) -> TimedSize | None:
        self.tried.append(size)
        if size > self.fits:
            return None
        each = self.seconds(size)
        return TimedSize(size, [each * 1.005, each, each * 1.3], peak_bytes=size)

    def may_grow(self, timed: TimedSize, size: int) -> bool:
        return timed.peak_bytes * size / timed.size <= self.fits

    def found(self, whole: int, guess: int) -> int:
        return choose(search(divisors(whole), guess, self.measure, self.may_grow)).size


def on_gpu(size: int) -> float:
    """Return the seconds per sequence of a GPU: each micro-batch also costs the start of its kernels."""
    return 1 + 2 / size


def test_a_gpu_takes_the_largest_size_that_fits() -> None:
    machine = Machine(on_gpu, fits=40)
    assert machine.found(64, guess=32) == 32
    assert machine.tried == [32, 16, 8]  # it ends after two that are slower


def test_a_guess_that_was_too_low_or_too_high_is_corrected() -> None:
    assert Machine(on_gpu, fits=64).found(64, guess=4) == 64
    too_high = Machine(on_gpu, fits=10)
    assert too_high.found(64, guess=64) == 8
    assert too_high.tried == [64, 32, 16, 8, 4, 2]


def test_a_size_that_should_not_fit_is_not_tried_with_a_larger_one() -> None:
    machine = Machine(on_gpu, fits=10)
    assert machine.found(64, guess=8) == 8
    assert max(machine.tried) == 8


def test_a_cpu_with_a_small_cache_takes_a_small_size() -> None:
    assert Machine(lambda size: 1 + size / 100, fits=64).found(64, guess=64) == 1


def test_of_sizes_that_are_equally_fast_the_smallest_is_taken() -> None:
    assert Machine(lambda size: 1.0 if size >= 8 else 1.2, fits=64).found(64, guess=64) == 8
    assert Machine(lambda size: 1.0 if size >= 8 else 1.01, fits=64).found(64, guess=64) == 1


def test_a_difference_within_the_noise_is_a_tie() -> None:
    quiet = [TimedSize(8, [1.0, 1.001], 0), TimedSize(4, [1.05, 1.051], 0)]
    noisy = [TimedSize(8, [1.0, 1.06], 0), TimedSize(4, [1.05, 1.1], 0)]
    wild = [TimedSize(8, [1.0, 2.0], 0), TimedSize(4, [1.5, 1.6], 0)]  # noise never hides a large difference
    assert [choose(each).size for each in (quiet, noisy, wild)] == [8, 4, 8]


def test_the_search_ends_when_its_time_is_over() -> None:
    machine = Machine(on_gpu, fits=64)
    timed = search(divisors(64), 16, machine.measure, machine.may_grow, has_time=lambda: False)
    assert [each.size for each in timed] == [16]


def test_nothing_fits() -> None:
    assert not search(divisors(6), 6, Machine(on_gpu, fits=0).measure, lambda timed, size: True)


@pytest.mark.parametrize("guess_at", [0.0, 0.5, 1.0])
@given(whole=st.integers(1, 2000), fits=st.integers(1, 2000), slope=st.floats(-1, 1))
def test_the_chosen_size_divides_the_global_batch_and_fits(
    guess_at: float, whole: int, fits: int, slope: float
) -> None:
    sizes = divisors(whole)
    machine = Machine(lambda size: 2 + slope / size, fits)
    chosen = machine.found(whole, guess=sizes[int(guess_at * (len(sizes) - 1))])
    assert whole % chosen == 0
    assert chosen <= fits
    assert len(set(machine.tried)) == len(machine.tried)
