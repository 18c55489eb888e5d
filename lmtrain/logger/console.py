"""Metrics for the person in front of the screen: a progress bar in a terminal, and a line a logged step."""

import logging
from collections.abc import Callable, Iterable, Mapping

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn

from lmtrain.terminal.console import console
from lmtrain.terminal.units import duration, si, significant

log = logging.getLogger(__name__)

REFRESHES_PER_SECOND = 2  # drawing takes time from the training on a small CPU


class ConsoleLogger:
    """Shows a bar that follows `steps_done()` by itself, so the training loop has nothing to call for it."""

    def __init__(self, steps_done: Callable[[], int], max_steps: int) -> None:
        self.max_steps = max_steps
        self.progress = _TrainProgress(steps_done, max_steps)
        self.progress.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # In a terminal the bar shows the training loss; a line is for evaluations and the file.
        level = logging.INFO if "val/loss" in metrics else logging.DEBUG
        log.log(level, step_line(step, self.max_steps, metrics))
        self.progress.show(step, metrics)

    def close(self, status: str) -> None:
        self.progress.stop()


class _TrainProgress(Progress):
    def __init__(self, steps_done: Callable[[], int], max_steps: int) -> None:
        self._steps_done = steps_done
        super().__init__(
            TextColumn("step {task.completed}/{task.total}", markup=False),
            BarColumn(bar_width=None),
            TextColumn("{task.description}", markup=False),
            console=console,
            refresh_per_second=REFRESHES_PER_SECOND,
            transient=True,
            disable=not console.is_terminal,
            expand=True,
        )
        self._bar = self.add_task("first step …", total=max_steps, completed=steps_done())

    def get_renderables(self) -> Iterable[RenderableType]:
        for task in self.tasks:
            task.completed = self._steps_done()
        yield self.make_tasks_table(self.tasks)

    def show(self, step: int, metrics: Mapping[str, float]) -> None:
        if "train/loss" not in metrics:
            return
        left = duration((int(self.tasks[0].total or 0) - step) * metrics["step_time_ms"] / 1000) if step > 1 else "…"
        self.update(
            self._bar,
            description=f"loss {metrics['train/loss']:.3f}  lr {metrics['lr']:.1e}  "
            f"{si(metrics['tokens_per_second'])} tok/s  {left} left",
        )


def step_line(step: int, max_steps: int, metrics: Mapping[str, float]) -> str:
    """Return one step's metrics as a line to read at a glance; what was not measured is left out."""
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
