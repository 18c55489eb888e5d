"""Simulates verdicts with a margin at its border, and comparisons with a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from lmtrain.benchmark.verdicts.case import Case, Row, share_at_most, shown_share
from lmtrain.benchmark.verdicts.drawing import Design, draw_table, equal_design
from lmtrain.benchmark.verdicts.rules import ALPHA, read_claims
from lmtrain.comparison.statistics.conclusions import conclude

SAME, NO_WORSE = "are the same within", "is no worse than"
MARGIN = 2.0  # standard deviations between seeds


@dataclass(frozen=True)
class AtTheMargin:
    """Draws settings of which the last is worse than the first, the baseline, by exactly the margin.

    All others equal the first. The last must not be called the same as the first, nor no worse.
    """

    design: Design
    with_baseline: bool

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        same, no_worse, true = [], [], []
        last = f"s{len(self.design.seeds) - 1}"
        for _ in range(tables):
            groups = draw_table(self.design, generator)
            found = conclude(groups, margin=MARGIN, baseline=groups[0] if self.with_baseline else None)
            sentences = {pair.other.label: pair.sentence for pair in found.comparisons}
            # Without a baseline, the best setting may be any, and the last may be compared with another one.
            wrong = (
                [sentences.get(last, "")]
                if found.groups[0].label != last or self.with_baseline
                else [*sentences.values()]
            )
            same.append(any(SAME in text for text in wrong))
            no_worse.append(any(NO_WORSE in text for text in wrong))
            true += [SAME in text for label, text in sentences.items() if label != last]
        rows = [share_at_most("false same within the margin", same, ALPHA)]
        if self.with_baseline:
            rows.append(share_at_most("false no worse than the margin", no_worse, ALPHA))
        return [*rows, *([shown_share("equal settings called the same", true)] if true else [])]


@dataclass(frozen=True)
class AgainstBaseline:
    """Draws equal settings, or settings that are worse than the first by a difference, and compares with the first."""

    design: Design

    def __call__(self, tables: int, generator: np.random.Generator) -> Sequence[Row]:
        with_baseline, all_pairs = [], []
        for _ in range(tables):
            groups = draw_table(self.design, generator)
            found = conclude(groups, baseline=groups[0])
            with_baseline.append(bool(read_claims(found).better))
            all_pairs.append(bool(read_claims(conclude(groups)).better))
        if self.design.means is None:
            return [share_at_most('false "better" against a baseline', with_baseline, ALPHA)]
        return [
            shown_share("tables in which a difference from the baseline is found", with_baseline),
            shown_share("tables in which one is found by all pairs", all_pairs),
        ]


def cases() -> list[Case]:
    found = []
    for settings, seeds, correlation, with_baseline in product((2, 3, 5), (3, 5, 10), (0.0, 0.9), (False, True)):
        means = (*[0.0] * (settings - 1), MARGIN)
        design = equal_design(settings, seeds, correlation=correlation, means=means)
        about = "with a baseline" if with_baseline else "no baseline"
        name = f"{settings} settings × {seeds} seeds, correlation {correlation:g}, the last at the margin, {about}"
        typical = (settings, seeds, correlation) == (3, 5, 0.0)
        found.append(Case(name, AtTheMargin(design, with_baseline), 0.5, typical))
    for settings, seeds, correlation in product((3, 5, 10), (3, 5, 10), (0.0, 0.9)):
        design = equal_design(settings, seeds, correlation=correlation)
        name = f"{settings} settings × {seeds} seeds, correlation {correlation:g}, against a baseline"
        found.append(Case(name, AgainstBaseline(design), 0.5, typical=(settings, seeds, correlation) == (5, 5, 0.0)))
        worse = equal_design(settings, seeds, correlation=correlation, means=(0.0, *[2.0] * (settings - 1)))
        found.append(Case(f"{name}, 2 SD", AgainstBaseline(worse), 0.25, typical=(settings, seeds) == (5, 5)))
    for counts in ((3, 10, 10), (10, 3, 3), (2, 5, 20)):
        found.append(
            Case(
                f"3 settings × {'/'.join(map(str, counts))} seeds, against a baseline",
                AgainstBaseline(Design(counts)),
                0.5,
            )
        )
    return found
