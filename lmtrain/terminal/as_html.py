"""Shows in a notebook what the terminal shows: tables and lines of text as HTML."""

import html
from collections.abc import Iterable

from rich.console import RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lmtrain.terminal.as_text import visible

CELL = "padding:0.1em 0.8em; vertical-align:top; white-space:pre-wrap"


def as_html(parts: Iterable[RenderableType]) -> str:
    """Return tables and texts as HTML, without scripts; everything in them is escaped."""
    return "\n".join(map(_one, parts))


def _one(part: RenderableType) -> str:
    if isinstance(part, Padding):
        return _one(part.renderable)
    if isinstance(part, Table):
        return _table(part)
    text = _escaped(part)
    if not text.strip():
        return ""
    style = str(part.style) if isinstance(part, Text) else ""
    return f'<p style="margin:0.3em 0{_css(style)}">{text.strip()}</p>'


def _table(table: Table) -> str:
    sides = [f"{CELL}; text-align:{column.justify}" for column in table.columns]
    columns = [list(map(_escaped, column.cells)) for column in table.columns]
    rows = [_row("td", sides, row) for row in zip(*columns, strict=True)]
    head = _row("th", sides, [_escaped(column.header) for column in table.columns]) if table.show_header else ""
    return f"<table>\n<thead>{head}</thead>\n<tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _row(tag: str, sides: Iterable[str], cells: Iterable[str]) -> str:
    inside = "".join(f'<{tag} style="{side}">{cell}</{tag}>' for side, cell in zip(sides, cells, strict=True))
    return f"<tr>{inside}</tr>"


def _escaped(part: RenderableType) -> str:
    plain = part.plain if isinstance(part, Text) else str(part)
    return html.escape(visible(plain))


def _css(style: str) -> str:
    return "; font-weight:bold" if style == "bold" else "; opacity:0.7" if style == "dim" else ""
