"""Prints measurements of models: a row for each, the loss by position, and differences."""

import math
from collections.abc import Sequence

from rich.table import Table

from lmtrain.loop.evaluation import perplexity
from lmtrain.run.reading.measured import Measured
from lmtrain.run.reading.paired import Pair
from lmtrain.terminal.console import console
from lmtrain.terminal.units import significant


def show_measured(measured: Sequence[Measured]) -> None:
    """Print a row for each model and text; the loss has its standard error over documents, if there are several."""
    table = Table("run", "step", "text", "tokens", "documents", "loss ± SE", "perplexity", "bits/byte")
    for each in measured:
        for found in (*each.parts, each.total):
            over = found.over_documents
            error = f" ± {over.standard_error:.4f}" if math.isfinite(over.standard_error) else ""
            table.add_row(
                str(each.run),
                str(each.step),
                found.name,
                f"{found.tokens:,}",
                f"{over.documents:,}",
                f"{found.loss:.4f}{error}",
                significant(perplexity(found.loss)),
                bits_text(found.bits_per_byte),
            )
    console.print(table)


def show_positions(measured: Sequence[Measured]) -> None:
    """Print the loss by the number of tokens that the model saw before a token, with a column for each model."""
    console.print("\nloss by position: tokens that the model saw before", style="bold")
    table = Table("tokens before", *(f"{each.run} step {each.step}" for each in measured))
    columns = [{(found.first, found.last): found.loss for found in each.total.by_position()} for each in measured]
    for first, last in sorted({place for column in columns for place in column}):
        losses = [column.get((first, last)) for column in columns]
        table.add_row(
            str(first) if first == last else f"{first}–{last}",
            *("–" if loss is None else f"{loss:.4f}" for loss in losses),
        )
    console.print(table)


def show_pairs(measured: Sequence[Measured], pairs: Sequence[Pair]) -> None:
    """Print the difference of each model from the first one."""
    first = measured[0]
    console.print(f"\ndifference from {first.run} step {first.step} on the same documents", style="bold")
    table = Table("run", "step", "documents", "difference", "95% interval", "p", "unit")
    for pair in pairs:
        interval = f"{pair.low:+.4f} to {pair.high:+.4f}" if math.isfinite(pair.low) else "–"
        table.add_row(
            pair.run,
            str(pair.step),
            f"{pair.documents:,}",
            f"{pair.difference:+.4f}",
            interval,
            f"{pair.p:.2g}" if math.isfinite(pair.p) else "–",
            pair.unit,
        )
    console.print(table)
    if any(pair.documents < 2 for pair in pairs):
        console.print("one document gives no interval; --separator cuts a text into documents", style="dim")
    if len(pairs) > 1:
        console.print("each p is that of one pair alone: of many pairs, some are small by chance", style="dim")


def bits_text(bits_per_byte: float | None) -> str:
    return "–" if bits_per_byte is None else f"{bits_per_byte:.4f}"
