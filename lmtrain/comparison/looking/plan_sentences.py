"""Says in words how many seeds a planned comparison needs, what they cost, and how to run them."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.looking.looks import Looks
from lmtrain.comparison.looking.next_seed import command_for_seeds, settings_of
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.planned_seeds import MAX_PLANNED, PlannedSeeds, pair_noise, planned_seeds
from lmtrain.errors import COMPLETED
from lmtrain.files.numbers import as_float
from lmtrain.terminal.units import counted, duration, si

TOO_MANY = f"more than {MAX_PLANNED:,} seeds"
PLANNED_SUFFIX = "-planned"


@dataclass(frozen=True)
class SeedCost:
    """The cost of one seed of every setting; NaN where it is unknown."""

    seconds: float
    tokens: float


def recorded_cost(runs: Sequence[ComparedRun], settings: int) -> SeedCost:
    """Return the cost of one seed of so many settings, from the mean of the completed runs."""
    completed = [run for run in runs if run.status == COMPLETED.status]
    seconds, tokens = (
        [number for run in completed if math.isfinite(number := as_float(run.result.get(key)))]
        for key in ("seconds", "tokens")
    )
    return SeedCost(*(settings * float(np.mean(found)) if found else math.nan for found in (seconds, tokens)))


def seeds_to_plan(groups: Sequence[ReplicateGroup], difference: float, settings: int) -> PlannedSeeds | None:
    """Return the number of seeds that `settings` settings need, by the noise of these; None without any noise."""
    noise = pair_noise(groups) if groups else None
    return planned_seeds(difference, noise, max(2, settings)) if noise and noise.sd else None


def plan_sentences(
    groups: Sequence[ReplicateGroup], runs: Sequence[ComparedRun], difference: float, looks: Looks
) -> list[str]:
    """Return how many seeds the compared settings need to detect a difference, the cost, and the command."""
    settings = max(2, len(groups))
    planned = seeds_to_plan(groups, difference, settings)
    sentences = sentences_of(planned, recorded_cost(runs, settings))
    seeds = [run.seed for run in runs]
    if planned is None or planned.high is None or looks.sweep is None or not all(type(seed) is int for seed in seeds):
        return sentences
    folder = looks.sweep.with_name(looks.sweep.name + PLANNED_SUFFIX)
    fresh = fresh_seeds(seeds, planned.high)
    if command := command_for_seeds(looks.sweep, settings_of(looks.sweep, runs), fresh, folder):
        sentences.append(f"to run it, with fresh seeds: {command}")
    return sentences


def fresh_seeds(used: Sequence[int], count: int) -> range:
    """Return so many seeds that were not used yet."""
    first = max(used, default=0) + 1
    return range(first, first + count)


def sentences_of(planned: PlannedSeeds | None, cost: SeedCost) -> list[str]:
    """Return a planned number of seeds in words."""
    if planned is None:
        return [
            "no number of seeds can be planned: no setting has two seeds with different results; run one with several "
            "seeds first: seed=1,2,3,4,5"
        ]
    wanted = f"a difference of {planned.difference:.4g} between {planned.settings} settings"
    if planned.middle is None:
        return [f"{TOO_MANY} each: {wanted} cannot be found in practice; {_noise(planned)}"]
    high = TOO_MANY if planned.high is None else counted(planned.high, "seed")
    seeds = high if planned.low == planned.high else f"{planned.low:,} to {high}"
    any_time = TOO_MANY if planned.any_time is None else counted(planned.any_time, "seed")
    return [
        f"to detect {wanted}: {seeds} each; {_noise(planned)}",
        _promise(planned),
        _cost(planned, planned.middle, cost),
        f"looking after every seed instead (--again) needs {any_time} each on average, if the noise is as estimated",
    ]


def _promise(planned: PlannedSeeds) -> str:
    expected = f"{planned.middle:,}, the number for the noise as estimated,"
    if planned.high is None:
        return (
            f"{expected} detect it in about {planned.power_of_middle:.0%} of cases, because so few seeds leave the "
            "noise uncertain; a few more seeds of these settings would narrow the range"
        )
    return (
        f"{planned.high:,} detect it in at least 80% of cases, unless the noise is above its interval (one case in "
        f"ten); {expected} in about {planned.power_of_middle:.0%}"
    )


def _noise(planned: PlannedSeeds) -> str:
    noise = planned.noise
    low, high = noise.limits()
    source = (
        "of the differences between runs with equal seeds" if noise.paired else "of a difference without common seeds"
    )
    return f"the SD {source} is {noise.sd:.2g} (80% interval {low:.2g} to {high:.2g}, df {noise.df})"


def _cost(planned: PlannedSeeds, middle: int, cost: SeedCost) -> str:
    numbers = list(dict.fromkeys([middle, planned.high or middle]))

    def each(text: Callable[[int], str]) -> str:
        return " to ".join(dict.fromkeys(map(text, numbers)))

    parts = [f"{each('{:,}'.format)} seeds each are {each(lambda n: f'{n * planned.settings:,}')} runs"]
    if math.isfinite(cost.seconds):
        parts.append(f"{each(lambda n: duration(n * cost.seconds))} one after another")
    if math.isfinite(cost.tokens):
        parts.append(f"{each(lambda n: si(n * cost.tokens))} tokens")
    return ", ".join(parts)
