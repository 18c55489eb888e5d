"""A comparison in the terminal."""

import math
from collections.abc import Sequence

from lmtrain.compare.columns import Column
from lmtrain.compare.comparison import Compared
from lmtrain.compare.output.tables import (
    SHOWN_GROUPS,
    effects_table,
    fitted,
    groups_table,
    reach_table,
    runs_table,
    usual,
)
from lmtrain.compare.statistics.conclusions import degrees
from lmtrain.terminal.console import console
from lmtrain.terminal.units import loss_text

REACHED_ROWS = 10


def show(compared: Compared, *, limit: int = 40) -> None:
    """`limit` is the rows of a table, 0 for all."""
    _show_runs(compared, limit or len(compared.runs))
    _show_statistics(compared)
    _show_reach(compared)


def _show_runs(compared: Compared, limit: int) -> None:
    runs = compared.runs[:limit]
    same: Sequence[str] = []
    hidden: Sequence[Column] = []
    picked = compared.asked
    if picked is None:
        picked, same = usual(compared.columns, compared.runs, compared.keys)
        picked, hidden = fitted(picked, runs, console.width)
    count = f"{len(compared.runs)} run{'s' if len(compared.runs) > 1 else ''}"
    _heading(f"{count}, {compared.metric}")
    console.print(runs_table(picked, runs))
    if same:
        _dim(f"the same for all: {', '.join(same)}")
    if hidden:
        _dim(f"no room for {', '.join(column.header for column in hidden)}: --columns, --csv or a wider terminal")
    if len(compared.runs) > limit:
        _dim(f"{len(compared.runs) - limit} more: --limit 0 shows all")
    if any(column.header.endswith("*") for column in picked):
        _dim("* between two evaluations: on the line from one to the next")


def _show_statistics(compared: Compared) -> None:
    conclusions = compared.conclusions
    if len(compared.runs) > 1:
        noise = conclusions.noise
        of = f"; noise between seeds {noise.sd:.2g} (SD, {degrees(noise.df)})" if noise else ""
        _heading(f"{compared.value}{of}")
        if noise and len(conclusions.groups) > 1:
            console.print(groups_table(conclusions))
            if len(conclusions.groups) > SHOWN_GROUPS:
                _dim(f"{len(conclusions.groups) - SHOWN_GROUPS} more groups: --json has all")
        for sentence in conclusions.sentences:
            console.print(sentence, markup=False)
    for note in compared.notes:
        console.print(f"note: {note}", markup=False, style="yellow")
    if len(conclusions.effects) > 1:
        against = conclusions.effects_noise
        kind = (
            "the noise between seeds" if conclusions.noise else "what effects that add up leave unexplained (no seeds)"
        )
        _heading("effect of each setting" + (f", against {kind}, {against.sd:.2g}" if against else ""))
        console.print(effects_table(conclusions))


def _show_reach(compared: Compared) -> None:
    if not math.isfinite(compared.goal):
        return
    chosen = ", which three runs in four reach (--reach chooses another)" if compared.goal_chosen else ""
    _heading(f"first evaluation with {compared.metric} at {loss_text(compared.goal)} or better{chosen}")
    reached = sorted(
        zip(compared.runs, compared.reached, strict=True), key=lambda pair: pair[1]["tokens"] if pair[1] else math.inf
    )
    console.print(reach_table(reached[:REACHED_ROWS]))
    if len(reached) > REACHED_ROWS:
        _dim(f"{len(reached) - REACHED_ROWS} more, which took longer or never came there: --json has all")


def _heading(text: str) -> None:
    console.print(f"\n{text}", markup=False, style="bold")


def _dim(text: str) -> None:
    console.print(text, markup=False, style="dim")
