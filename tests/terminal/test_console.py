"""Tests that text from outside is printed literally: no markup, emoji, link or escape code takes effect."""

import io
import logging
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from lmtrain.data.progress import DataProgress
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.console import PlainConsole, RedactingFormatter, _make_console, configure_logging, console

# Markup that is closed but never opened raises an error in rich; then colors, an emoji, a link, and a title.
TEXT = "[/x] [red]r[/red] :smile: [link=file:///x]l[/link] \x1b[31m\x1b]0;title\x07 \x9b2J \r \u202e \ud800 \\[y]"
SHOWN = (
    "[/x] [red]r[/red] :smile: [link=file:///x]l[/link] \\x1b[31m\\x1b]0;title\\x07 \\x9b2J \\r \\u202e \\ud800 \\[y]"
)


@pytest.fixture
def terminal() -> PlainConsole:
    return PlainConsole(file=io.StringIO(), force_terminal=True, width=400, color_system=None, soft_wrap=True)


def written(terminal: PlainConsole) -> str:
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


def test_control_characters_are_made_visible_and_nothing_else_changes() -> None:
    assert visible(TEXT) == SHOWN
    text = "a\tb\nc é 漢字 \u00a0\u3000\u200d 👩\u200d🔬 עברית"
    assert visible(text) == text


def test_a_line_and_a_table_show_text_literally(terminal: PlainConsole) -> None:
    terminal.print(TEXT)
    table = Table(TEXT, title=TEXT, caption=TEXT)
    table.add_row(TEXT)
    terminal.print(table)
    assert written(terminal).count(SHOWN) == 5
    assert written(terminal).replace("\n", "").isprintable()
    borders = {len(line) for line in written(terminal).splitlines() if line.startswith(("┏", "┃", "│", "└"))}
    assert borders == {len(SHOWN) + 4}  # a cell is as wide as the text shown


def test_lmtrains_own_styles_still_work() -> None:
    colors = PlainConsole(file=io.StringIO(), force_terminal=True, color_system="standard")
    colors.print("[a]", style="red")
    colors.print(Text("[b]", "red"))
    assert written(colors) == "\x1b[31m[a]\x1b[0m\n\x1b[31m[b]\x1b[0m\n"


def test_a_text_and_a_progress_bar_show_text_literally(terminal: PlainConsole) -> None:
    with DataProgress(terminal) as progress:
        progress.stage(TEXT, 10)
        progress.advance(5)
    terminal.print(Text(TEXT))
    shown = re.sub(r"\x1b\[\?25[lh]|\r|\x1b\[1A|\x1b\[2K|\n", "", written(terminal))  # the bar's own control codes
    assert shown.count("[/x] [red]r[/red] :smile: [link=file:///x]l[/link] \\x1b[31m") >= 2
    assert shown.isprintable()


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Path]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    configure_logging(tmp_path)
    yield tmp_path / "train.log"
    for handler in set(root.handlers) - set(before[0]):
        handler.close()
    root.handlers[:], root.level = before
    logging.captureWarnings(False)


def test_log_lines_show_text_literally(logged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # Without the lone surrogate: the test report includes the log, and pytest-xdist can't send it with one.
    text, shown = TEXT.replace("\ud800", ""), SHOWN.replace("\\ud800", "")
    logging.getLogger("lmtrain.x").info("%s\nsecond line", text)
    logging.getLogger("other.library").warning("%s", text)
    try:
        raise ValueError(text)
    except ValueError:
        logging.getLogger("lmtrain.x").exception("failed")
    assert logged.read_text(encoding="utf-8").count(shown) == 3
    assert f"{shown}\nsecond line" in logged.read_text(encoding="utf-8")
    assert "\x1b" not in logged.read_text(encoding="utf-8")
    assert capsys.readouterr().out.count(shown) == 2


def test_the_console_of_every_command_is_a_plain_one() -> None:
    assert isinstance(console, PlainConsole)
    assert RedactingFormatter("%(message)s").format(logging.makeLogRecord({"msg": TEXT})) == SHOWN


def test_a_notebook_gets_plain_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    monkeypatch.setenv("FORCE_COLOR", "1")
    made = _make_console()
    made.print("a line", style="bold red")
    assert capsys.readouterr().out == "a line\n"
    assert not made.is_terminal


def test_the_command_continues_when_its_reader_is_gone(tmp_path: Path) -> None:
    code = (
        "from lmtrain.terminal.console import console\n"
        "for number in range(3):\n    console.print('x' * 100_000)\n"
        "print('more')\nopen('written', 'w').close()"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, text=True, check=False
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "written").exists()
