"""Prints headings, lines and tables without borders, and amounts as people write them."""

from collections.abc import Iterable

from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lmtrain.terminal.console import console
from lmtrain.terminal.units import duration, si


def as_time(seconds: float) -> str:
    return duration(seconds) if seconds >= 1 else "under 1s"


def as_milliseconds(seconds: float) -> str:
    if seconds >= 10:
        return f"{seconds:,.1f} s"
    return f"{1000 * seconds:,.0f} ms" if seconds >= 0.01 else f"{1000 * seconds:.2g} ms"


def as_dollars(amount: float) -> str:
    if amount >= 1000:
        return f"${amount:,.0f}"
    return f"${amount:,.2f}" if amount >= 0.005 else "under a cent"


def as_bytes(size: float) -> str:
    return f"{si(size)}B"


def new_table(first: str, *others: str) -> Table:
    table = Table(first, box=None, pad_edge=False, padding=(0, 2), show_header=True, header_style="dim")
    for other in others:
        table.add_column(other, justify="right")
    return table


def print_rows(rows: Iterable[tuple[str, str]]) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2), show_header=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows:
        table.add_row(name, Text(text))
    print_table(table)


def print_table(table: Table) -> None:
    console.print(Padding(table, (0, 0, 0, 2), expand=False), soft_wrap=False)


def print_heading(text: str) -> None:
    print_line(f"\n{text}", style="bold")


def print_line(text: str, style: str | None = None) -> None:
    console.print(Text(text), style=style)
