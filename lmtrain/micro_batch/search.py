"""Chooses which micro-batch sizes to try, and which of them to take. Pure functions; the caller measures."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

STRIDE = 4 / 3  # smallest ratio between two sizes that are tried
NEAR_TIE = 0.02  # a size is as fast as another if its steps take at most this share longer
MAX_NOISE = 0.1
MAX_SLOWER = 2  # the search ends after so many smaller sizes in a row that are slower


@dataclass(frozen=True)
class TimedSize:
    """The measurement of a micro-batch size.

    Attributes:
        size: Sequences per micro-batch.
        seconds: The time of each step, divided by the sequences of the step.
        peak_bytes: The largest memory: of tensors on a GPU, of the process on a CPU.
    """

    size: int
    seconds: Sequence[float]
    peak_bytes: int

    @property
    def best(self) -> float:
        """Return the time of the fastest step: other work on the machine only ever adds time."""
        return min(self.seconds)

    @property
    def noise(self) -> float:
        """Return by how much the two fastest steps differ, as a share."""
        fastest = sorted(self.seconds)[:2]
        return min(fastest[-1] / fastest[0] - 1, MAX_NOISE)


def search(
    sizes: Sequence[int],
    guess: int,
    measure: Callable[[int], TimedSize | None],
    may_grow: Callable[[TimedSize, int], bool],
    has_time: Callable[[], bool] = lambda: True,
) -> list[TimedSize]:
    """Measure sizes around the largest one that fits, and return the measurements; none if no size fits.

    Larger sizes are measured while they fit and are faster, then smaller ones, until they are slower.

    Args:
        sizes: The possible sizes, in ascending order.
        guess: The largest size that is expected to fit.
        measure: Measures a size; returns None if it does not fit into the memory.
        may_grow: Tells whether a larger size can be tried, given the measurement of a smaller one.
        has_time: False ends the search, once a size has been measured.
    """
    size: int | None = guess
    found, ceiling = None, sizes[-1] + 1
    while size is not None and (found := measure(size)) is None:
        ceiling = size
        size = _smaller(sizes, size)
    if found is None:
        return []
    timed = [found]
    while (
        has_time()
        and (size := _larger(sizes, found.size)) is not None
        and size < ceiling
        and may_grow(found, size)
        and (larger := measure(size)) is not None
    ):
        timed.append(larger)
        if larger.best >= found.best:
            break
        found = larger
    slower = 0
    size = timed[0].size
    while slower < MAX_SLOWER and has_time() and (size := _smaller(sizes, size)) is not None:
        if (smaller := measure(size)) is None:
            break
        timed.append(smaller)
        slower = 0 if is_near_tie(smaller, fastest(timed)) else slower + 1
    return timed


def choose(timed: Sequence[TimedSize]) -> TimedSize:
    """Return the fastest size; of those that are as fast within the noise, the smallest, which needs least memory."""
    best = fastest(timed)
    return min((each for each in timed if is_near_tie(each, best)), key=lambda each: each.size)


def fastest(timed: Sequence[TimedSize]) -> TimedSize:
    return min(timed, key=lambda each: each.best)


def is_near_tie(timed: TimedSize, best: TimedSize) -> bool:
    return timed.best <= best.best * (1 + max(NEAR_TIE, timed.noise, best.noise))


def _smaller(sizes: Sequence[int], size: int) -> int | None:
    return max((each for each in sizes if each * STRIDE <= size), default=None)


def _larger(sizes: Sequence[int], size: int) -> int | None:
    return min((each for each in sizes if each >= size * STRIDE), default=None)
