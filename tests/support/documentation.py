"""The pages of the documentation, as Markdown."""

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def table_cells(page: str, header: str) -> Iterator[str]:
    """Yield the first cells of all tables on a page of `docs/reference` whose first column has that header."""
    text = (DOCS / "reference" / page).read_text(encoding="utf-8")
    for table in re.findall(rf"^\| {re.escape(header)} \|.*\n\|[-|]+\n((?:\|.*\n)+)", text, re.MULTILINE):
        for row in table.splitlines():
            yield row.split(" | ")[0].removeprefix("|").strip().removesuffix(" |")


def code_in(cells: Iterator[str]) -> set[str]:
    """Return the texts in backticks in the cells."""
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}
