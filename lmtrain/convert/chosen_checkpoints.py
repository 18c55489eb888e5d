"""Chooses the checkpoints that an average is taken of. This module works without torch."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lmtrain.checkpoint.steps import CHECKPOINTS, checkpoint_steps, chosen_step, step_folder
from lmtrain.files.links import refuse_links
from lmtrain.run.directory import RUN_FILES
from lmtrain.terminal.as_text import first_few
from lmtrain.terminal.units import counted

GRAMMAR = "give steps (600,800), a range of steps (600-1000), the last K (last:K), best or latest"
KEPT = "a run keeps a checkpoint for good only if trainer.keep_every or trainer.keep_checkpoints says so"
SHOWN_STEPS = 12
RANGE = re.compile(r"([0-9]{1,18})-([0-9]{1,18})")
LAST = re.compile(r"last:([1-9][0-9]{0,8})")


@dataclass(frozen=True)
class ChosenCheckpoint:
    """A checkpoint of a run, with its weight in the average."""

    run: Path
    step: int
    weight: float = 1.0

    @property
    def path(self) -> Path:
        return self.run / CHECKPOINTS / step_folder(self.step)

    def __str__(self) -> str:
        return f"{self.run} step {self.step}"


def choose_checkpoints(
    runs: Sequence[Path], steps: str | None, weights: Sequence[float] | None = None
) -> list[ChosenCheckpoint]:
    """Return the checkpoints to average, each once, in the order of the runs and of what `steps` says.

    Args:
        runs: The run directories.
        steps: What to take of each run, such as `600,800`, `600-1000`, `last:5`, `best` or `latest`; None means the
            best checkpoint of each of several runs.
        weights: A positive weight for each checkpoint; None means equal weights.

    Raises:
        ValueError: `steps` cannot be read, a run does not have a step, there are fewer than two checkpoints, or their
            number is not that of the weights.
    """
    for run in runs:
        refuse_links(run, (*RUN_FILES, CHECKPOINTS), below=[CHECKPOINTS])
    if steps is None:
        if len({run.resolve() for run in runs}) == 1:
            raise ValueError(f"{runs[0]}: say with --steps which checkpoints to average; {_steps_in_words(runs[0])}")
        steps = "best"
    chosen: dict[tuple[Path, int], ChosenCheckpoint] = {}
    for run in runs:
        for item in steps.split(","):
            for step in _steps_of(run, item.strip()):
                chosen.setdefault((run.resolve(), step), ChosenCheckpoint(run, step))
    found = list(chosen.values())
    if len(found) < 2:
        raise ValueError(
            f"--steps {steps}: chooses only one checkpoint, {found[0]}, but an average needs two or more; "
            f"{_steps_in_words(found[0].run)}"
        )
    if weights is None:
        return found
    if len(weights) != len(found):
        names, given = first_few(found, SHOWN_STEPS), counted(len(weights), "weight")
        raise ValueError(f"--weights: {given} for {len(found)} checkpoints ({names}); give one for each")
    return [ChosenCheckpoint(each.run, each.step, weight) for each, weight in zip(found, weights, strict=True)]


def _steps_of(run: Path, item: str) -> Iterator[int]:
    """Yield the steps that an item of `--steps` means for a run."""
    steps = checkpoint_steps(run)
    if item in ("best", "latest"):
        yield chosen_step(run, item)
    elif found := LAST.fullmatch(item):
        if (count := int(found[1])) > len(steps):
            has = counted(len(steps), "checkpoint")
            raise ValueError(f"--steps {item}: {run} has only {has}; {_steps_in_words(run)}")
        yield from steps[-count:]
    elif found := RANGE.fullmatch(item):
        first, last = int(found[1]), int(found[2])
        if not (inside := [step for step in steps if first <= step <= last]):
            raise ValueError(f"--steps {item}: {run} has no checkpoint in this range; {_steps_in_words(run)}")
        yield from inside
    elif item.isascii() and item.isdecimal():
        if int(item) not in steps:
            raise ValueError(f"--steps {item}: {run} has no checkpoint of this step; {_steps_in_words(run)}")
        yield int(item)
    else:
        raise ValueError(f"--steps {item}: not understood; {GRAMMAR}")


def _steps_in_words(run: Path) -> str:
    return f"it has {first_few(checkpoint_steps(run), SHOWN_STEPS)} ({KEPT})"
