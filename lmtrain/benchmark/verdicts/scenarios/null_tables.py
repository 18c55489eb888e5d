"""Simulates tables in which all settings are equal: how often is one called better, and do the intervals hold?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_least, share_at_most, shown_mean
from lmtrain.benchmark.verdicts.drawing import Design, draw_table, equal_design
from lmtrain.benchmark.verdicts.rules import ALPHA, Rule, claims_of_compare

SETTINGS, SEEDS = (2, 3, 10, 30), (2, 3, 5, 10, 20)
UNEQUAL_SEEDS: Sequence[Sequence[int]] = (
    (2, 5), (3, 10), (2, 20), (2, 3, 5), (3, 3, 10), (2, 3, 4, 5, 6, 7, 8, 9, 10, 20),
)  # fmt: skip
SHAPES = ("normal", "t3", "lognormal")
MANY = 30
FALSE_BETTER = 'false "better"'
COVERAGE = "all intervals hold"
AMONG = "the set of the best contains a given one"
RAW = "bias of the winner's mean, in standard errors"
CORRECTED = "bias of its mean expected on new seeds"
# By the fewest seeds of a setting, where settings differ in noise; the verdicts say so in words.
HOLES = (
    "one run cannot show that its setting is noisier than the others",
    "two seeds hardly show that their setting is noisier than the others",
)
LEAST_COVERAGE = {"normal": 0.95, "t3": 0.93, "lognormal": 0.93}


@dataclass(frozen=True)
class NullTables:
    """Draws tables without any difference and counts the claims that are wrong."""

    design: Design
    rule: Rule = claims_of_compare

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        wrong, held, contained, raw, corrected = [], [], [], [], []
        for _ in range(tables):
            groups = draw_table(self.design, generator)
            claims = self.rule(groups)
            best = next(group for group in groups if group.label == claims.best)
            error = math.sqrt(len(best.values)) / (1 if self.design.sds is None else max(self.design.sds))
            contained.append("s0" in claims.among if claims.among else math.nan)
            raw.append(best.mean * error)
            corrected.append(claims.on_new_seeds * error)
            wrong.append(bool(claims.better))
            held.append(all(low <= 0 <= high for low, high in claims.intervals.values()))
        rows = [
            share_at_most(FALSE_BETTER, wrong, ALPHA),
            share_at_least(COVERAGE, held, LEAST_COVERAGE[self.design.shape]),
        ]
        if not np.isnan(contained).all():
            rows.append(share_at_least(AMONG, contained, LEAST_COVERAGE[self.design.shape]))
        if not np.isnan(corrected).all():
            rows += [shown_mean(RAW, raw), shown_mean(CORRECTED, corrected)]
        return rows


def cases() -> list[Case]:
    return [*_grid(), *_unequal()]


def _grid() -> list[Case]:
    found = []
    for settings, seeds, correlation, shape in product(SETTINGS, SEEDS, (0.0, 0.5, 0.9), SHAPES):
        if settings == MANY and (seeds in (5, 20) or correlation == 0.5):
            continue  # a table of so many settings takes long
        design = equal_design(settings, seeds, correlation=correlation, shape=shape)
        name = f"{settings} settings × {seeds} seeds, {shape}, correlation {correlation:g}"
        typical = settings in (2, 10) and seeds == 3 and correlation == 0.5
        found.append(Case(name, NullTables(design), share=_share(settings), typical=typical))
    return found


def _unequal() -> list[Case]:
    designs = {**_unequal_seeds(), **_unequal_noise(), **_single_runs()}
    found = []
    for name, design in designs.items():
        holes = dict.fromkeys((FALSE_BETTER, COVERAGE, AMONG), reason) if (reason := _hole(design)) else {}
        found.append(Case(name, NullTables(design), share=_share(len(design.seeds)), holes=holes))
    return found


def _hole(design: Design) -> str:
    """Return why no rule can keep its promise for this design; empty if one can."""
    if design.sds is None or min(design.seeds) > len(HOLES):
        return ""
    return HOLES[min(design.seeds) - 1]


def _unequal_seeds() -> dict[str, Design]:
    designs = {}
    for shape, correlation in product(SHAPES, (0.0, 0.9)):
        about = f"{shape}, correlation {correlation:g}"
        for seeds in UNEQUAL_SEEDS:
            name = f"{len(seeds)} settings × {'/'.join(map(str, seeds))} seeds, {about}"
            designs[name] = Design(seeds, correlation, shape)
        for settings, count in product((2, 3, 10), (3, 5, 10)):
            name = f"{settings} settings × {count} seeds, a third of the values missing, {about}"
            designs[name] = equal_design(settings, count, correlation=correlation, shape=shape, lost=1 / 3)
    return designs


def _unequal_noise() -> dict[str, Design]:
    designs = {}
    for settings, count, correlation in product((2, 3, 10), (2, 3, 5, 10), (0.0, 0.9)):
        size, about = f"{settings} settings × {count} seeds", f"normal, correlation {correlation:g}"
        spread = tuple(np.geomspace(1, 4, settings).tolist())
        designs[f"{size}, SD from 1 to 4, {about}"] = equal_design(settings, count, sds=spread, correlation=correlation)
        for times in (3.0, 10.0):
            sds = (*[1.0] * (settings - 1), times)
            name = f"{size}, one {times:g} times as noisy, {about}"
            designs[name] = equal_design(settings, count, sds=sds, correlation=correlation)
    for (few, many), times in product(((2, 10), (3, 10), (5, 20)), (3.0, 10.0)):
        for which, sds in (("fewer", (times, 1.0)), ("more", (1.0, times))):
            name = f"2 settings × {few}/{many} seeds, that with {which} {times:g} times as noisy, normal, correlation 0"
            designs[name] = Design((few, many), sds=sds)
    return designs


def _single_runs() -> dict[str, Design]:
    designs = {}
    for settings, count, correlation in product((2, 3, 10), (3, 5, 10), (0.0, 0.9)):
        size, about = f"{settings} settings × {count} seeds", f"normal, correlation {correlation:g}"
        counts = (*[count] * (settings - 1), 1)
        designs[f"{size}, one with a single run, {about}"] = Design(counts, correlation)
        sds = (*[1.0] * (settings - 1), 3.0)
        name = f"{size}, one with a single run and 3 times as noisy, {about}"
        designs[name] = Design(counts, correlation, sds=sds)
    return designs


def _share(settings: int) -> float:
    """Return the share of tables to simulate: the time of a table grows with the pairs of settings."""
    return {2: 1.0, 3: 1.0, 10: 0.5}.get(settings, 0.25)
