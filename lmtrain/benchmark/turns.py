"""What the benchmarks share: contenders that take turns, and ratios within a round."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")

WARMUP_ROUNDS = 2  # for contenders that compile, allocate or cache something first


def rotated(contenders: Mapping[str, Item], number: int) -> list[tuple[str, Item]]:
    """Return the contenders in the order of a round: another one begins each time.

    What runs after a pause may find the machine cooler or its caches colder.
    """
    items = list(contenders.items())
    return items[number % len(items) :] + items[: number % len(items)]


def take_turns(
    contenders: Mapping[str, Item], rounds: int, measure: Callable[[Item, int], float], *, warmup: int = 0
) -> list[dict[str, float]]:
    """Measure every contender in every round; return the rounds after the warm-up, by the contenders' names."""
    measured = [
        {name: measure(contender, number) for name, contender in rotated(contenders, number)}
        for number in range(warmup + rounds)
    ]
    return measured[warmup:]


def ratio(rounds: Sequence[Mapping[str, float]], name: str, base: str) -> float:
    """Return the median of the ratios within a round."""
    return statistics.median(each[name] / each[base] for each in rounds)


def median(rounds: Sequence[Mapping[str, float]], name: str) -> float:
    """Return the median over the rounds."""
    return statistics.median(each[name] for each in rounds)
