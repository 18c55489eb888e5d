"""The console that prints log lines and progress bars, and the log file of a run."""

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

LOG_WIDTH = 200  # columns of a table when the output is not a terminal


class PlainConsole(Console):
    """A console that prints text literally: no `[markup]`, `:emoji:` or links, and control characters made visible.

    Nearly every text contains something from outside, such as a path, a name or a token. Give styles as `style=` or as
    `rich.text.Text`. A `TextColumn` of `rich.progress` needs `markup=False`.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(markup=False, emoji=False, highlight=False, **settings)

    def render_str(self, text: str, **settings: Any) -> Text:
        """Return the text for printing or measuring; rich calls this for each string, including those in tables."""
        return super().render_str(visible(text), **settings)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield the segments to write; every text passes here, including text in a `Text` object."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text))

    def on_broken_pipe(self) -> None:
        """Print nothing more once the reader, such as `head`, closes the pipe; the command still writes its files."""
        self.quiet = True
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _make_console() -> Console:
    # A notebook reports a terminal but can't move the cursor, and rich's own notebook mode would make each line a
    # separate output.
    is_notebook = "ipykernel" in sys.modules
    console = PlainConsole(soft_wrap=True, force_jupyter=False, force_terminal=False if is_notebook else None)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


console = _make_console()


class RedactingFormatter(logging.Formatter):
    """A formatter that removes secrets and control characters from a log line, including its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(redact(super().format(record)))


class ConsoleHandler(logging.Handler):
    """A handler that prints log lines through the console, so that they appear above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        style = {logging.WARNING: "yellow", logging.ERROR: "bold red"}.get(record.levelno)
        # The traceback goes to the log file only.
        console.print(redact(record.getMessage()), style=style)


class LogFileHandler(logging.FileHandler):
    """A log file that stops on a write error: a full disk is reported once and does not stop the run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        logging.getLogger().removeHandler(self)
        console.print(f"{self.baseFilename}: can no longer be written: {sys.exception()}", style="yellow")


def configure_logging(run_dir: Path) -> None:
    """Send all log lines and warnings to `train.log`, and lmtrain's also to the console; undo an earlier call."""
    # In a terminal the progress bar shows every step, so lines about logged steps go only to the file.
    shown = ConsoleHandler(logging.INFO if console.is_terminal else logging.DEBUG)
    shown.addFilter(lambda record: record.name.startswith("lmtrain") or record.levelno >= logging.WARNING)
    shown.addFilter(lambda record: record.levelno > logging.DEBUG or not record.exc_info)  # tracebacks go to the file
    root = logging.getLogger()
    for handler in root.handlers[:]:
        if isinstance(handler, logging.FileHandler | ConsoleHandler):
            root.removeHandler(handler)
            handler.close()
    log_to(run_dir / "train.log")
    root.addHandler(shown)


def log_to(path: Path) -> None:
    """Send all log lines and warnings to a file as well."""
    file = LogFileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(RedactingFormatter("%(asctime)s %(levelname)-7s %(message)s"))
    file.addFilter(lambda record: record.levelno >= logging.INFO or record.name.startswith("lmtrain"))
    root = logging.getLogger()
    root.addHandler(file)
    root.setLevel(logging.INFO)
    logging.getLogger("lmtrain").setLevel(logging.DEBUG)
    logging.captureWarnings(True)
