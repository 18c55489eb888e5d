"""Shows the progress of a preparation or inspection: a bar in a terminal, otherwise a line every 30 seconds."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from lmtrain.terminal.console import console
from lmtrain.terminal.units import duration, si

LINE_SECONDS = 30.0  # time between lines if there is no terminal


class TokensPerSecond(ProgressColumn):
    def render(self, task: Task) -> Text:
        tokens, seconds = task.fields["tokens"], task.elapsed or 0.0
        return Text(f"{si(tokens / seconds)} tok/s" if tokens and seconds else "")


class DataProgress:
    """A context manager that shows, for each stage, the bytes done, the tokens per second and the time left."""

    def __init__(self, output: Console = console) -> None:
        self.console = output
        self._bar = Progress(
            TextColumn("{task.description}", style="bold", markup=False),
            BarColumn(),
            DownloadColumn(),
            TokensPerSecond(),
            TimeRemainingColumn(),
            console=output,
            transient=True,
            disable=not output.is_terminal,
        )
        self.stage("starting", None)

    def stage(self, name: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Begin a stage of `total_bytes` bytes of text (None: unknown); an earlier process has done `done_bytes`."""
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        self._task = self._bar.add_task(name, total=total_bytes, completed=done_bytes, tokens=0)
        self._name, self._total, self._bytes, self._already, self._tokens = name, total_bytes, done_bytes, done_bytes, 0
        self._started = self._line = time.monotonic()

    def advance(self, text_bytes: int, tokens: int = 0) -> None:
        self._bytes += text_bytes
        self._tokens += tokens
        self._bar.update(self._task, completed=self._bytes, tokens=self._tokens)
        now = time.monotonic()
        if not self.console.is_terminal and now - self._line > LINE_SECONDS:
            self._line = now
            self.console.print(self._in_words(now - self._started))

    def _in_words(self, seconds: float) -> str:
        parts = [f"{self._name}: {si(self._bytes)}B"]
        if self._total:
            parts[0] += f" of {si(self._total)}B"
        if self._tokens:
            parts.append(f"{si(self._tokens / seconds)} tok/s")
        if self._total and self._bytes > self._already:
            left = (self._total - self._bytes) / (self._bytes - self._already) * seconds
            parts.append(f"{duration(max(0.0, left))} left")
        return "  ".join(parts)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
