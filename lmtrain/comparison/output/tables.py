"""Builds tables of runs and of conclusions about them, for a terminal of any width."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from rich import box
from rich.cells import cell_len
from rich.table import Table

from lmtrain.comparison.columns import Column, with_commas
from lmtrain.comparison.labels import cut_middle
from lmtrain.comparison.lineage.families import below_their_trunk
from lmtrain.comparison.reach.rank_test import MIN_PAIRS
from lmtrain.comparison.reach.run_times import ReachResult
from lmtrain.comparison.runs import ComparedRun
from lmtrain.comparison.statistics.conclusions import Conclusions
from lmtrain.comparison.statistics.significance import half_width
from lmtrain.comparison.statistics.wording.numbers import p_in_table, plus_minus
from lmtrain.terminal.units import duration, si

MAX_CELL = 28  # characters; a longer text is cut in the middle
GAP = 2
# The columns that a table shows by default: those in ALWAYS, and those in DEFAULT in which the runs differ.
ALWAYS = ("run", "at_step")
DEFAULT = ("parent", "branch_step", "status", "steps", "tokens", "parameters", "at_tokens", "at_flops", "at_seconds",
           "best", "best_shared", "final", "tokens_per_second")  # fmt: skip
# The columns to drop in a narrow terminal, in this order.
DROPPED = ("parameters", "tokens", "final", "at_flops", "at_tokens", "steps", "tokens_per_second", "at_seconds",
           "best_shared")  # fmt: skip
SHOWN_GROUPS = 20
NOTHING = "–"


def cell_text(column: Column, run: ComparedRun) -> str:
    """Return a run's value in a column as text, shortened if it is too long."""
    value = column.value(run)
    if value is None and column.is_text:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        return NOTHING
    return cut_middle(column.show(value), 2 * MAX_CELL if column.key in ("run", "parent") else MAX_CELL)


def default_columns(
    columns: Mapping[str, Column], runs: Sequence[ComparedRun], keys: Sequence[str]
) -> tuple[list[Column], list[str]]:
    """Return the columns to show, and texts that say what is the same for all runs."""
    picked, same, best = [], [], columns["best"]
    named = below_their_trunk(runs)  # the trunk stands above, so that the step is enough
    forks = {place for place, run in enumerate(runs) if run.parent}
    for key, column in columns.items():
        if key == "parent" and forks and forks <= named:
            continue
        if key in keys and all(_is_in_name(column, columns["run"], run) for run in runs):
            continue
        if key == "best_shared" and all(cell_text(column, run) in (NOTHING, cell_text(best, run)) for run in runs):
            continue  # no run was evaluated more often than the others
        if key in ALWAYS or key in keys:
            picked.append(column)
        elif key in DEFAULT:
            texts = {cell_text(column, run) for run in runs}
            known = texts - {"", NOTHING}
            if len(texts) > 1 or (known and len(runs) == 1):
                picked.append(column)
            elif known:
                same.append(texts.pop() if column.is_text else f"{column.header} {texts.pop()}")
    # Columns of losses are often copies: equal tokens mean equal steps if all runs have the same tokens per step, and
    # the last evaluation is often the best.
    seen: dict[tuple[str, ...], Column] = {}
    copies: dict[str, list[str]] = {}
    distinct = []
    for column in picked:
        first = column
        if column.key.startswith("at_") or column.key in ("best_shared", "best", "final"):
            first = seen.setdefault(tuple(cell_text(column, run) for run in runs), column)
        if first is column:
            distinct.append(column)
        elif not column.key.startswith("at_"):
            copies.setdefault(first.header, []).append(column.header)
    return distinct, [*same, *(f"{' and '.join(headers)} = {first}" for first, headers in copies.items())]


def _is_in_name(column: Column, run_name: Column, run: ComparedRun) -> bool:
    """Return whether the run's name is a label that already contains the whole value."""
    return f"{column.header}={cell_text(column, run)}" in cell_text(run_name, run).split()


def fit_to_width(
    columns: Sequence[Column], runs: Sequence[ComparedRun], width: int
) -> tuple[list[Column], list[Column]]:
    """Return the columns that fit into a terminal of this width, and those that do not."""
    kept = list(columns)
    by_key = {column.key: column for column in columns}
    # Config keys are dropped after that, first those that distinguish the fewest runs.
    keys = [column.key for column in columns if column.key not in (*ALWAYS, *DEFAULT)]
    keys.sort(key=lambda key: (len({cell_text(by_key[key], run) for run in runs}), key != "seed"))
    order = [*DROPPED, *keys[:-2], "parent", "best", "status", *keys[-2:], "run"]
    widths = {column.key: _column_width(column, runs) for column in columns}
    for key in order:
        if sum(widths[column.key] + GAP for column in kept) <= width:
            break
        if key in by_key and len(kept) > 1:
            kept.remove(by_key[key])
    return kept, [column for column in columns if column not in kept]


def _column_width(column: Column, runs: Sequence[ComparedRun]) -> int:
    return max([*map(cell_len, column.header.split()), *(cell_len(cell_text(column, run)) for run in runs)])


def runs_table(columns: Sequence[Column], runs: Sequence[ComparedRun]) -> Table:
    table = plain_table()
    for column in columns:
        left = column.is_text
        table.add_column(column.header.replace(" ", "\n"), justify="left" if left else "right", no_wrap=True)
    for run in runs:
        table.add_row(*(cell_text(column, run) for column in columns))
    return table


def groups_table(conclusions: Conclusions) -> Table:
    table = plain_table(*group_headers(conclusions))
    for row in group_rows(conclusions)[:SHOWN_GROUPS]:
        table.add_row(*row)
    return table


def group_headers(conclusions: Conclusions) -> list[str]:
    """Return the headers of the columns of `group_rows`."""
    return ["setting", "seeds", "mean ± 95%", "SD", "vs baseline" if conclusions.baseline else "vs best", "p"]


def group_rows(conclusions: Conclusions) -> list[list[str]]:
    """Return a row of texts per group, best first, in the order of `group_headers`."""
    by_group = {id(comparison.other): comparison for comparison in conclusions.comparisons}
    rows = []
    for group in conclusions.groups:
        comparison = by_group.get(id(group))
        sample = group.sample
        several = len(sample) > 1
        without = len(group.diverged) + len(group.missing)
        reason = "diverged" if group.diverged and not group.missing else "without value"
        mean = plus_minus(group.mean, half_width(sample), least_digits=3) if several else f"{group.mean:.4f}"
        difference = NOTHING if group.diverged else ""
        if comparison and math.isfinite(comparison.difference.value):
            difference = plus_minus(-comparison.difference.value, comparison.difference.half_width)
        rows.append(
            [
                group.label + (f" ({without} of {without + len(sample)} {reason})" if without else ""),
                str(len(sample)),
                mean if sample else NOTHING,
                f"{np.std(sample, ddof=1):.2g}" if several else NOTHING,
                difference if comparison else "",
                "" if comparison is None else NOTHING if comparison.verdict == "none" else p_in_table(comparison.p),
            ]
        )
    return rows


def reach_table(reached: Sequence[tuple[ComparedRun, Mapping[str, float] | None]]) -> Table:
    table = plain_table("run", "step", "tokens", "FLOPs", "time")
    for run, place in reached:
        if place is None:
            table.add_row(cut_middle(run.label, 2 * MAX_CELL), "not reached", "", "", "")
        else:
            table.add_row(
                cut_middle(run.label, 2 * MAX_CELL),
                f"{place['step']:.0f}",
                *(si(place[axis]) if math.isfinite(place[axis]) else NOTHING for axis in ("tokens", "flops")),
                duration(place["seconds"]),
            )
    return table


def setting_reach_table(reach: ReachResult) -> Table:
    """Return a row per setting, soonest first, with medians over its seeds."""
    table = plain_table("setting", "seeds", "reached", "median step", "95%", "tokens", "time", "p")
    for setting in reach.settings[:SHOWN_GROUPS]:
        medians = setting.medians
        table.add_row(
            cut_middle(setting.label, 2 * MAX_CELL),
            str(setting.seeds),
            str(setting.reached),
            _interval_text(medians.get("step"), with_commas),
            _interval_text(setting.intervals.get("step"), with_commas) if setting.seeds >= MIN_PAIRS else NOTHING,
            _interval_text(medians.get("tokens"), si),
            _interval_text(medians.get("seconds"), duration),
            "" if setting.p is None else p_in_table(setting.p),
        )
    return table


def _interval_text(interval: tuple[float, float] | None, show: Callable[[float], str]) -> str:
    """Return a text such as `150–200`, or `> 600` without an upper end."""
    if interval is None:
        return NOTHING
    low, high = interval
    return f"{show(low)}–{show(high)}" if math.isfinite(high) else f"> {show(low)}"


def plain_table(*headers: str) -> Table:
    """Return an empty table without a frame, with numbers aligned to the right in all columns but the first."""
    table = Table(*headers, box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP, 0, 0), show_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    return table
