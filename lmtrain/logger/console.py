"""Shows metrics on the screen: a progress bar in a terminal, and one line per logged step."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from rich.console import RenderableType
from rich.progress import BarColumn, Progress, TextColumn

from lmtrain.terminal.as_text import visible
from lmtrain.terminal.console import console
from lmtrain.terminal.units import duration, si, significant

log = logging.getLogger(__name__)

SAMPLE_CHARS = 200  # of a text; samples.jsonl has all of it
REFRESHES_PER_SECOND = 2  # on a small CPU, drawing slows the training


class ConsoleLogger:
    """Shows a progress bar that calls `steps_done()` by itself, so that the training loop need not update it."""

    def __init__(self, steps_done: Callable[[], int], max_steps: int) -> None:
        self.max_steps = max_steps
        self.progress = _TrainProgress(steps_done, max_steps)
        self.progress.start()

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        # In a terminal the bar shows the training loss, so only evaluations get a line there; train.log gets all lines.
        level = logging.INFO if "val/loss" in metrics else logging.DEBUG
        log.log(level, step_line(step, self.max_steps, metrics))
        self.progress.show(step, metrics)

    def log_samples(self, step: int, samples: Sequence[tuple[str, str]]) -> None:
        for prompt, text in samples:
            one_line = visible(" ".join(f"{prompt}▸{text}".split()))
            rest = "…" if len(one_line) > SAMPLE_CHARS else ""
            log.info("sample after step %d: %s%s", step, one_line[:SAMPLE_CHARS], rest)

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
    """Return the metrics of one step as a short line; metrics that were not measured are left out."""
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
    if "step_time_ms" in metrics and 1 < step < max_steps:  # the first step is slower than the others
        parts.append(f"{duration((max_steps - step) * metrics['step_time_ms'] / 1000)} left")
    return "  ".join(parts)
