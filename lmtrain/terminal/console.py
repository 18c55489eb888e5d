"""What a person sees: one console for log lines and progress bars, and the log file."""

import logging
import sys
from pathlib import Path

from rich.console import Console

from lmtrain.terminal.redact import redact

LOG_WIDTH = 200  # columns of a table where there is no terminal to ask


def _make_console() -> Console:
    console = Console(highlight=False, soft_wrap=True)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


console = _make_console()


class RedactingFormatter(logging.Formatter):
    """Takes secrets out of a whole log line, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class ConsoleHandler(logging.Handler):
    """Prints log lines on the console, so that they appear above a progress bar and not inside it."""

    def emit(self, record: logging.LogRecord) -> None:
        style = {logging.WARNING: "yellow", logging.ERROR: "bold red"}.get(record.levelno)
        # A traceback is for the log file; here the message is enough.
        console.print(redact(record.getMessage()), style=style, markup=False)


class LogFileHandler(logging.FileHandler):
    """A log file that may end early: a full disk is reported once, and does not stop a run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        logging.getLogger().removeHandler(self)
        console.print(
            f"{self.baseFilename}: can't be written any more: {sys.exception()}", style="yellow", markup=False
        )


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
