"""What the benchmarks share: turns, ratios within a round, and a file that names the machine."""

import json
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

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


def processor() -> str:
    """The CPU's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def write_json(path: Path, **results: Any) -> None:
    machine = {
        "cpu": processor(),
        "cpus": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
    }
    path.write_text(json.dumps({**results, "machine": machine}, indent=2) + "\n", encoding="utf-8")
