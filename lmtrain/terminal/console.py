"""What a person sees: one console for log lines and progress bars, and the log file."""

import logging
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from lmtrain.terminal.as_text import visible
from lmtrain.terminal.redact import redact

LOG_WIDTH = 200  # columns of a table where there is no terminal to ask


class PlainConsole(Console):
    """Prints text as it is: no `[markup]`, no `:emoji:`, no links, and what would act on the terminal is visible.

    Nearly all texts have something in them that is not lmtrain's own: a path, a name, a token. Styles are given as
    `style=` or as `rich.text.Text`; of `rich.progress`, a `TextColumn` needs `markup=False`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return the text for printing or measuring; rich calls this for each string, in tables as well."""
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is to be written; here every text comes by, one in a `Text` as well."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> None:
        """Print nothing more: whoever reads, `head` say, has seen enough. The command goes on, and writes its files."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make_console() -> Console:
    console = PlainConsole(
        soft_wrap=True, force_jupyter=False
    )  # in a notebook, each line would be an output of its own
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


console = _make_console()


class RedactingFormatter(logging.Formatter):
    """Takes secrets and what acts on a terminal out of a whole log line, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(redact(super().format(record)))


class ConsoleHandler(logging.Handler):
    """Prints log lines on the console, so that they appear above a progress bar and not inside it."""

    def emit(self, record: logging.LogRecord) -> None:
        style = {logging.WARNING: "yellow", logging.ERROR: "bold red"}.get(record.levelno)
        # A traceback is for the log file; here the message is enough.
        console.print(redact(record.getMessage()), style=style)


class LogFileHandler(logging.FileHandler):
    """A log file that may end early: a full disk is reported once, and does not stop a run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        logging.getLogger().removeHandler(self)
        console.print(f"{self.baseFilename}: can't be written any more: {sys.exception()}", style="yellow")


def configure_logging(run_dir: Path) -> None:
    """Send all log lines and warnings to `train.log`, and lmtrain's to the console; replaces an earlier call."""
    file = LogFileHandler(run_dir / "train.log", encoding="utf-8", errors="backslashreplace")
    file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    file.addFilter(lambda record: record.levelno >= logging.INFO or record.name.startswith("lmtrain"))
    # In a terminal the bar shows every step; the lines of steps that were only logged go to the file.
    shown = ConsoleHandler(logging.INFO if console.is_terminal else logging.DEBUG)
    shown.addFilter(lambda record: record.name.startswith("lmtrain") or record.levelno >= logging.WARNING)
    shown.addFilter(lambda record: record.levelno > logging.DEBUG or not record.exc_info)  # a traceback for the file
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, logging.FileHandler | ConsoleHandler):
            root.removeHandler(handler)
            handler.close()
    root.addHandler(file)
    root.addHandler(shown)
    root.setLevel(logging.INFO)
    logging.getLogger("lmtrain").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
