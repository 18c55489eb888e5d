"""Prints a comparison in the terminal."""

import math
from collections.abc import Sequence

from lmtrain.comparison.columns import Column
from lmtrain.comparison.output.effects_table import (
    are_worth_showing,
    effect_sentences,
    effects_heading,
    effects_table,
)
from lmtrain.comparison.output.tables import (
    SHOWN_GROUPS,
    default_columns,
    fit_to_width,
    groups_table,
    reach_table,
    runs_table,
    setting_reach_table,
)
from lmtrain.comparison.run_comparison import RunComparison
from lmtrain.comparison.run_values import direction_is_known, sign
from lmtrain.comparison.statistics.conclusions import Conclusions
from lmtrain.comparison.statistics.wording.numbers import degrees
from lmtrain.comparison.worth_of_settings import worth_in_words
from lmtrain.terminal.console import console
from lmtrain.terminal.units import counted, loss_text

REACHED_ROWS = 10


def show_comparison(comparison: RunComparison, *, limit: int = 40) -> None:
    """Print the comparison, with at most `limit` runs in the table (0: all)."""
    _show_runs(comparison, limit or len(comparison.runs))
    _show_statistics(comparison)
    _show_reach(comparison)


def _show_runs(comparison: RunComparison, limit: int) -> None:
    runs = comparison.runs[:limit]
    same: Sequence[str] = []
    hidden: Sequence[Column] = []
    picked = comparison.asked
    if picked is None:
        picked, same = default_columns(comparison.columns, comparison.runs, comparison.keys)
        picked, hidden = fit_to_width(picked, runs, console.width)
    count = counted(len(comparison.runs), "run")
    _print_heading(f"{count}, {comparison.metric}{_direction_in_words(comparison)}")
    console.print(runs_table(picked, runs))
    if same:
        _print_dim(f"the same for all: {', '.join(same)}")
    if hidden:
        names = ", ".join(column.header for column in hidden)
        _print_dim(f"no room for {names}; use --columns, --csv or a wider terminal")
    if len(comparison.runs) > limit:
        _print_dim(f"{len(comparison.runs) - limit} more; --limit 0 shows all")
    if any(column.header.endswith("*") for column in picked):
        _print_dim("* interpolated between two evaluations")


def _direction_in_words(comparison: RunComparison) -> str:
    """Return ` (higher is better)` or ` (lower is better)`; nothing for a loss, of which everybody knows it."""
    if comparison.better > 0 and sign(comparison.metric) > 0 and direction_is_known(comparison.metric):
        return ""
    return f" ({'lower' if comparison.better > 0 else 'higher'} is better)"


def _show_statistics(comparison: RunComparison) -> None:
    if comparison.refusals:
        _print_heading(comparison.value)
        for refusal in comparison.refusals:
            console.print(refusal)
    for title, part in comparison.parts if len(comparison.runs) > 1 else []:
        _show_verdicts(title or comparison.value, part)
    for note in comparison.further_notes:
        console.print(f"note: {note}", style="yellow")
    for title, part in comparison.parts:
        _show_effects(title, part.conclusions)


def _show_verdicts(title: str, comparison: RunComparison) -> None:
    conclusions = comparison.conclusions
    if not (conclusions.comparisons or conclusions.sentences):
        return  # a run that has no competitor
    noise = conclusions.noise
    of = f"; noise between seeds {noise.sd:.2g} (SD, {degrees(noise.df)})" if noise else ""
    _print_heading(f"{title}{of}")
    if conclusions.comparisons:
        console.print(groups_table(conclusions))
        if len(conclusions.groups) > SHOWN_GROUPS:
            _print_dim(f"{counted(len(conclusions.groups) - SHOWN_GROUPS, 'more setting')}; --json writes all")
    for sentence in [*conclusions.sentences, *worth_in_words(comparison)]:
        console.print(sentence)


def _show_effects(title: str, conclusions: Conclusions) -> None:
    if are_worth_showing(conclusions.effects):
        _print_heading(f"{title}: " * bool(title) + effects_heading(conclusions.effects))
        console.print(effects_table(conclusions.effects))
        for sentence in effect_sentences(conclusions.effects):
            console.print(sentence)


def _show_reach(comparison: RunComparison) -> None:
    if not math.isfinite(comparison.goal):
        return
    shows = "" if comparison.reach is None else " and shows each run"
    chosen = f", which at least three in four runs reach (--reach sets another value{shows})"
    goal = f"first evaluation with {comparison.metric} of {loss_text(comparison.goal)} or better"
    _print_heading(goal + chosen * comparison.goal_chosen)
    if comparison.reach is None or not comparison.goal_chosen:
        _show_reach_of_runs(comparison)
    if comparison.reach is not None:
        if not comparison.goal_chosen:
            console.print()
        console.print(setting_reach_table(comparison.reach))
        if (rest := len(comparison.reach.settings) - SHOWN_GROUPS) > 0:
            _print_dim(f"{counted(rest, 'more setting')}; --json writes all")
        for sentence in comparison.reach.sentences:
            console.print(sentence)


def _show_reach_of_runs(comparison: RunComparison) -> None:
    reached = sorted(
        zip(comparison.runs, comparison.reached, strict=True),
        key=lambda pair: pair[1]["tokens"] if pair[1] else math.inf,
    )
    console.print(reach_table(reached[:REACHED_ROWS]))
    if len(reached) > REACHED_ROWS:
        _print_dim(f"{len(reached) - REACHED_ROWS} more, which took longer or never reached it; --json writes all")


def _print_heading(text: str) -> None:
    console.print(f"\n{text}", style="bold")


def _print_dim(text: str) -> None:
    console.print(text, style="dim")
