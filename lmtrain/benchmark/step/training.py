"""The real training loop, which takes its steps when a benchmark asks for them."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf

from lmtrain.benchmark.step.timeline import DATA, LOGGING, Marks
from lmtrain.loop.training_parts import Parts
from lmtrain.parts import build_scratch_trainer

FOREVER = 10**9  # steps
# Values of `trainer` with which the loop only takes steps, except that it logs the first one.
ONLY_STEPS: dict[str, Any] = {
    "max_steps": FOREVER,
    "eval_interval": FOREVER,
    "checkpoint_interval": FOREVER,
    "log_interval": FOREVER,
}
RANDOM_TOKENS = 1_000_000  # in the place of missing data


class _EndOfMeasurement(Exception):  # noqa: N818 (it is not an error)
    """Leaves the training loop."""


class TrainingInTurns:
    """Runs `Trainer.fit`, one step for each `yield` of a measurement.

    The code between two yields of the measurement runs between two steps of the loop. So the time from before a
    `yield` until after it is the time of a step with everything that the loop does around it.

    Args:
        cfg: The checked config.
        parts: The parts of the run.
        folder: An empty folder for metrics and checkpoints.
    """

    def __init__(self, cfg: DictConfig, parts: Parts, folder: Path) -> None:
        constant = {key: None for key in ("batch_schedule", "length_schedule") if key in cfg.trainer}
        # A rewind would need checkpoints.
        self.trainer = build_scratch_trainer(cfg, parts, folder, **ONLY_STEPS, **constant, on_bad_step="skip")
        self.marks: Marks | None = None  # notes when each phase of a step begins

    def run(self, measurement: Iterator[None]) -> None:
        """Train until the measurement ends."""
        trainer, step = self.trainer, self.trainer.step

        def turn() -> Any:
            try:
                next(measurement)
            except StopIteration:
                raise _EndOfMeasurement from None
            if self.marks is None:
                return step()
            self.marks.mark(DATA)
            result = step()
            self.marks.mark(LOGGING)
            return result

        trainer.step = turn  # type: ignore[method-assign]
        with contextlib.suppress(_EndOfMeasurement):
            trainer.fit()

    def set_micro_batches(self, number: int) -> None:
        """Set the number of micro-batches in the following steps."""
        self.trainer.schedules.set_micro_batches(number)


def with_random_tokens(cfg: DictConfig, folder: Path) -> DictConfig:
    """Write random tokens into a folder, and return the config with them as its data."""
    vocab_size, batch_size, block_size = int(cfg.model.vocab_size), int(cfg.data.batch_size), int(cfg.data.block_size)
    dtype = "uint16" if vocab_size <= 2**16 else "uint32"
    tokens = max(RANDOM_TOKENS, 2 * batch_size * block_size + 1)
    folder.mkdir()
    for split, count in (("train", tokens), ("val", block_size + 1)):
        ids = np.random.default_rng(0).integers(0, vocab_size, count, dtype=np.uint32)
        ids.astype(np.dtype(dtype).newbyteorder("<")).tofile(folder / f"{split}.bin")
    node = {
        "_target_": "lmtrain.data.loader.TokenLoader",
        "path": str(folder),
        "batch_size": batch_size,
        "block_size": block_size,
        "dtype": dtype,
    }
    changed = cfg.copy()
    OmegaConf.update(changed, "data", node, merge=False, force_add=True)
    return changed
