"""What a person sees: one console for log lines and progress bar, and the wording of numbers."""

import logging
import math
import sys
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console

from lmtrain.redact import redact

LOG_WIDTH = 200  # columns of a table where there is no terminal to ask

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console = Console(highlight=False, soft_wrap=True, width=LOG_WIDTH)


class RedactingFormatter(logging.Formatter):
    """Takes secrets out of the whole of a log line, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact(super().format(record))


class ConsoleHandler(logging.Handler):
    """Log lines through the console, so that they appear above a progress bar and not inside it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        logging.getLogger().removeHandler(self)  # nobody reads any more; the log file goes on

    def emit(self, record: logging.LogRecord) -> None:
        style = {logging.WARNING: "yellow", logging.ERROR: "bold red"}.get(record.levelno)
        # A traceback is for the log file; here the message is enough.
        try:
            console.print(redact(record.getMessage()), style=style, markup=False)
        except (OSError, SystemExit):  # rich's way to say that nobody reads any more: no reason to stop a run
            self.handleError(record)


class LogFileHandler(logging.FileHandler):
    """A log file that may come to an end: a full disk is told once, and is no reason to stop a run."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's own name)
        logging.getLogger().removeHandler(self)
        console.print(
            f"{self.baseFilename}: can't be written any more: {sys.exception()}", style="yellow", markup=False
        )


def configure_logging(run_dir: Path) -> None:
    """Sends all log lines and warnings to `train.log`, and lmtrain's to the console; replaces an earlier call's."""
    file = LogFileHandler(run_dir / "train.log", encoding="utf-8")
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


def step_line(step: int, max_steps: int, metrics: Mapping[str, float]) -> str:
    """One step's metrics as a line to read at a glance; what was not measured is left out."""
    parts = [f"step {step:>{len(str(max_steps))}}/{max_steps}"]
    if "train/loss" in metrics:
        parts.append(f"train {metrics['train/loss']:.4f}")
    if "val/loss" in metrics:
        parts.append(f"val {metrics['val/loss']:.4f} (perplexity {significant(metrics['val/perplexity'])})")
    if "val/bits_per_byte" in metrics:
        parts.append(f"{metrics['val/bits_per_byte']:.4f} bits/byte")
    if "lr" in metrics:
        parts.append(f"lr {metrics['lr']:.2e}")
    if "grad_norm" in metrics:
        parts.append(f"grad {metrics['grad_norm']:.3f}")
    if "tokens_per_second" in metrics:
        parts.append(f"{si(metrics['tokens_per_second'])} tok/s")
    if "mfu" in metrics:
        parts.append(f"MFU {metrics['mfu']:.1%}")
    if "step_time_ms" in metrics and 1 < step < max_steps:  # the first step takes longer than any other
        parts.append(f"{duration((max_steps - step) * metrics['step_time_ms'] / 1000)} left")
    return "  ".join(parts)


def significant(number: float) -> str:
    """Four significant digits, never an exponent for everyday sizes."""
    return f"{number:.4g}" if number < 1e6 else f"{number:.2e}"


def si(number: float) -> str:
    """1234567 → 1.23M."""
    if not math.isfinite(number):
        return str(number)
    for scale, unit in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(number) >= 0.9995 * scale:  # what rounds to 1000 of a unit is 1 of the next
            return f"{number / scale:.3g}{unit}"
    return f"{number:.3g}"


def duration(seconds: float) -> str:
    """Seconds in the two units that matter: 75 → 1m15s."""
    if not math.isfinite(seconds):
        return "unknown"
    whole = round(seconds)
    for unit, name, part, part_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "m"), (60, "m", 1, "s")):
        if whole >= unit:
            return f"{whole // unit}{name}{whole % unit // part:02d}{part_name}"
    return f"{whole}s"
