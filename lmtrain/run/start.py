"""Decides where a run starts: at step 0, at its own newest checkpoint, or at the checkpoint that it forks."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.fork import ForkOrigin, begin_fork, check_steps_left, forked_state, load_fork_origin
from lmtrain.checkpoint.several.together import load_together
from lmtrain.checkpoint.snapshot import TrainState, train_state
from lmtrain.checkpoint.steps import checkpoint_steps, step_to_fork
from lmtrain.parallel.base import Parallel
from lmtrain.trainer import Trainer


@dataclass(frozen=True)
class Start:
    """The starting point of a run: its own newest checkpoint, the checkpoint that it forks, or (without any) step 0."""

    own: Checkpoint | None = None
    origin: ForkOrigin | None = None

    @property
    def is_new(self) -> bool:
        """Whether the run starts at step 0, without a checkpoint."""
        return self.own is None and self.origin is None

    @property
    def state(self) -> TrainState:
        """The state before the first step of this process."""
        if self.own is not None:
            return train_state(self.own)
        return TrainState() if self.origin is None else forked_state(self.origin)

    @property
    def lineage(self) -> dict[str, Any]:
        """The entry in `environment.json` about the run that this one was forked from."""
        return {} if self.origin is None else {"forked_from": self.origin.record}

    @property
    def environment(self) -> Mapping[str, Any] | None:
        """The environment in which the run's own checkpoint was saved."""
        return None if self.own is None else self.own.state.get("environment")

    def restore(self, trainer: Trainer) -> None:
        """Load the checkpoint into the parts of the run.

        Raises:
            ValueError: The checkpoint does not fit the parts, or a fork has no steps left.
        """
        if self.own is not None:
            trainer.snapshot.restore(self.own)
            trainer.snapshot.begin_order_anew_if_changed(self.own, trainer.state)
            trainer.snapshot.check_batch_size(trainer.state.samples)
        elif self.origin is not None:
            round_of_batches = trainer.train_loader.batch_size * trainer.parallel.world.size
            begin_fork(trainer.snapshot, self.origin, trainer.state, round_of_batches)
            check_steps_left(self.origin, trainer.max_steps)


def load_start(cfg: DictConfig, checkpoints: CheckpointFolder, parallel: Parallel) -> Start:
    """Load the checkpoint that the run starts from, if there is one; the same in all of its processes.

    Raises:
        ValueError: All checkpoints of the run are broken, the origin of a fork has none, or a process does not see it.
    """
    if (own := load_together(checkpoints, parallel, checkpoints.load_latest, "newest checkpoint")) is not None:
        return Start(own=own)
    if broken := checkpoints.broken():
        raise ValueError(f"{checkpoints.path}: no intact checkpoint ({', '.join(broken)}); start a new run")
    return Start(origin=load_fork_origin(Path(cfg.fork), cfg.step)) if cfg.get("fork") else Start()


def start_checkpoints(cfg: DictConfig, run_dir: Path) -> list[Path]:
    """Return the checkpoints that the run may start from: its own, or without any, its origin's."""
    if steps := checkpoint_steps(run_dir):
        return [CheckpointFolder.of_run(run_dir).at(step) for step in steps]
    if not cfg.get("fork"):
        return []
    origin = Path(cfg.fork)
    return [CheckpointFolder.of_run(origin).at(step_to_fork(origin, cfg.step))]
