"""Lets contenders take turns, and calculates ratios within a round, for all benchmarks."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")

WARMUP_ROUNDS = 2  # in which contenders compile, allocate or fill caches


def rotated(contenders: Mapping[str, Item], number: int) -> list[tuple[str, Item]]:
    """Return the contenders in the order of a round; each round starts with another contender.

    The first one after a pause may find a cooler machine or colder caches.
    """
    items = list(contenders.items())
    return items[number % len(items) :] + items[: number % len(items)]


def take_turns(
    contenders: Mapping[str, Item], rounds: int, measure: Callable[[Item, int], float], *, warmup: int = 0
) -> list[dict[str, float]]:
    """Measure every contender in every round; return the measurements by name for each round after the warmup."""
    measured = [
        {name: measure(contender, number) for name, contender in rotated(contenders, number)}
        for number in range(warmup + rounds)
    ]
    return measured[warmup:]


def ratio(rounds: Sequence[Mapping[str, float]], name: str, base: str) -> float:
    """Return the median over rounds of the ratio of two measurements of a round."""
    return statistics.median(each[name] / each[base] for each in rounds)


def median(rounds: Sequence[Mapping[str, float]], name: str) -> float:
    """Return the median of a measurement over rounds."""
    return statistics.median(each[name] for each in rounds)
