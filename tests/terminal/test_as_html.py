"""Tests of HTML from what the terminal shows."""

import pytest
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from lmtrain.terminal.as_html import as_html


def test_a_table_keeps_its_cells_headers_and_sides() -> None:
    table = Table("name", show_header=True)
    table.add_column("loss", justify="right")
    table.add_row("a<b", Text("1.5"))
    shown = as_html([Padding(table, (0, 2))])
    assert shown.count("<tr>") == 2
    assert "text-align:right" in shown
    assert ">a&lt;b<" in shown
    assert ">1.5<" in shown


@pytest.mark.parametrize(
    ("part", "expected"),
    [("plain & simple", "plain &amp; simple"), (Text("\nhead", style="bold"), "head"), ("\x1b[31mred", "[31mred")],
)
def test_texts_are_escaped_paragraphs(part: str | Text, expected: str) -> None:
    shown = as_html([part])
    assert shown.startswith("<p")
    assert expected in shown
    assert "\x1b" not in shown
    assert ("bold" in shown) == isinstance(part, Text)


def test_empty_lines_are_left_out() -> None:
    assert as_html(["", Text(" ")]).strip() == ""
