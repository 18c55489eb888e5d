"""Shows a comparison in the terminal."""

import math
from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.text import Text

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
    for part in comparison_view(comparison, width=console.width, limit=limit):
        console.print(part)


def comparison_view(comparison: RunComparison, *, width: int, limit: int = 40) -> Iterator[RenderableType]:
    """Yield the tables and texts about a comparison that `compare` prints.

    Args:
        comparison: The comparison.
        width: The width of the terminal, in characters.
        limit: The most runs in the table; 0 means all.
    """
    yield from _runs(comparison, limit or len(comparison.runs), width)
    yield from _statistics(comparison)
    yield from _reach(comparison)


def _runs(comparison: RunComparison, limit: int, width: int) -> Iterator[RenderableType]:
    runs = comparison.runs[:limit]
    same: Sequence[str] = []
    hidden: Sequence[Column] = []
    picked = comparison.asked
    if picked is None:
        picked, same = default_columns(comparison.columns, comparison.runs, comparison.keys)
        picked, hidden = fit_to_width(picked, runs, width)
    count = counted(len(comparison.runs), "run")
    yield _heading(f"{count}, {comparison.metric}{_direction_in_words(comparison)}")
    yield runs_table(picked, runs)
    if same:
        yield _dim(f"the same for all: {', '.join(same)}")
    if hidden:
        names = ", ".join(column.header for column in hidden)
        yield _dim(f"no room for {names}; use --columns, --csv or a wider terminal")
    if len(comparison.runs) > limit:
        yield _dim(f"{len(comparison.runs) - limit} more; --limit 0 shows all")
    if any(column.header.endswith("*") for column in picked):
        yield _dim("* interpolated between two evaluations")


def _direction_in_words(comparison: RunComparison) -> str:
    """Return ` (higher is better)` or ` (lower is better)`; nothing for a loss, of which everybody knows it."""
    if comparison.better > 0 and sign(comparison.metric) > 0 and direction_is_known(comparison.metric):
        return ""
    return f" ({'lower' if comparison.better > 0 else 'higher'} is better)"


def _statistics(comparison: RunComparison) -> Iterator[RenderableType]:
    if comparison.refusals:
        yield _heading(comparison.value)
        yield from comparison.refusals
    for title, part in comparison.parts if len(comparison.runs) > 1 else []:
        yield from _verdicts(title or comparison.value, part)
    for note in comparison.further_notes:
        yield Text(f"note: {note}", style="yellow")
    for title, part in comparison.parts:
        yield from _effects(title, part.conclusions)


def _verdicts(title: str, comparison: RunComparison) -> Iterator[RenderableType]:
    conclusions = comparison.conclusions
    if not (conclusions.comparisons or conclusions.sentences):
        return  # a run that has no competitor
    noise = conclusions.noise
    of = f"; noise between seeds {noise.sd:.2g} (SD, {degrees(noise.df)})" if noise else ""
    yield _heading(f"{title}{of}")
    if conclusions.comparisons:
        yield groups_table(conclusions)
        if len(conclusions.groups) > SHOWN_GROUPS:
            yield _dim(f"{counted(len(conclusions.groups) - SHOWN_GROUPS, 'more setting')}; --json writes all")
    yield from conclusions.sentences
    yield from worth_in_words(comparison)


def _effects(title: str, conclusions: Conclusions) -> Iterator[RenderableType]:
    if are_worth_showing(conclusions.effects):
        yield _heading(f"{title}: " * bool(title) + effects_heading(conclusions.effects))
        yield effects_table(conclusions.effects)
        yield from effect_sentences(conclusions.effects)


def _reach(comparison: RunComparison) -> Iterator[RenderableType]:
    if not math.isfinite(comparison.goal):
        return
    shows = "" if comparison.reach is None else " and shows each run"
    chosen = f", which at least three in four runs reach (--reach sets another value{shows})"
    goal = f"first evaluation with {comparison.metric} of {loss_text(comparison.goal)} or better"
    yield _heading(goal + chosen * comparison.goal_chosen)
    if comparison.reach is None or not comparison.goal_chosen:
        yield from _reach_of_runs(comparison)
    if comparison.reach is not None:
        if not comparison.goal_chosen:
            yield ""
        yield setting_reach_table(comparison.reach)
        if (rest := len(comparison.reach.settings) - SHOWN_GROUPS) > 0:
            yield _dim(f"{counted(rest, 'more setting')}; --json writes all")
        yield from comparison.reach.sentences


def _reach_of_runs(comparison: RunComparison) -> Iterator[RenderableType]:
    reached = sorted(
        zip(comparison.runs, comparison.reached, strict=True),
        key=lambda pair: pair[1]["tokens"] if pair[1] else math.inf,
    )
    yield reach_table(reached[:REACHED_ROWS])
    if len(reached) > REACHED_ROWS:
        yield _dim(f"{len(reached) - REACHED_ROWS} more, which took longer or never reached it; --json writes all")


def _heading(text: str) -> Text:
    return Text(f"\n{text}", style="bold")


def _dim(text: str) -> Text:
    return Text(text, style="dim")
