"""What the benchmarks share: turns, ratios within a round, and a file that names the machine."""

import statistics
from collections.abc import Mapping, Sequence
from typing import TypeVar

Item = TypeVar("Item")


def rotated(contenders: Mapping[str, Item], number: int) -> list[tuple[str, Item]]:
    """Another one begins each round: what runs after a pause may find the machine cooler or its caches colder."""
    items = list(contenders.items())
    return items[number % len(items) :] + items[: number % len(items)]


def ratio(rounds: Sequence[Mapping[str, float]], name: str, base: str) -> float:
    """The median of the ratios within a round."""
    return statistics.median(each[name] / each[base] for each in rounds)


def median(rounds: Sequence[Mapping[str, float]], name: str) -> float:
    return statistics.median(each[name] for each in rounds)
