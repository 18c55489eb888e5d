"""Where a run starts: at step 0, or from a checkpoint of its own or of the run that it is a fork of."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmtrain.checkpoint.folder import Checkpoint, CheckpointFolder
from lmtrain.checkpoint.fork import ForkOrigin, begin_fork, check_steps_left, forked_state, load_fork_origin
from lmtrain.checkpoint.snapshot import TrainState, train_state
from lmtrain.checkpoint.steps import checkpoint_steps, step_to_fork
from lmtrain.trainer import Trainer


@dataclass(frozen=True)
class Start:
    """Where a run starts: at its own newest checkpoint, at the checkpoint that it is a fork of, or at step 0."""

    own: Checkpoint | None = None
    origin: ForkOrigin | None = None

    @property
    def state(self) -> TrainState:
        """The state before the first step of this process."""
        if self.own is not None:
            return train_state(self.own)
        return TrainState() if self.origin is None else forked_state(self.origin)

    @property
    def lineage(self) -> dict[str, Any]:
        """What `environment.json` says of the run that this one comes from."""
        return {} if self.origin is None else {"forked_from": self.origin.record}

    @property
    def environment(self) -> Mapping[str, Any] | None:
        """The environment that the run's own checkpoint was saved in."""
        return None if self.own is None else self.own.state.get("environment")

    def restore(self, trainer: Trainer) -> None:
        """Put the checkpoint into the parts of the run.

        Raises:
            ValueError: it does not fit them, or a fork has no step left to do.
        """
        if self.own is not None:
            trainer.snapshot.restore(self.own)
            trainer.snapshot.begin_order_anew_if_changed(self.own, trainer.state)
            trainer.snapshot.check_batch_size(trainer.state.samples)
        elif self.origin is not None:
            begin_fork(trainer.snapshot, self.origin, trainer.state, trainer.train_loader.batch_size)
            check_steps_left(self.origin, trainer.max_steps)


def load_start(cfg: DictConfig, checkpoints: CheckpointFolder) -> Start:
    """Load the checkpoint that the run starts from, if there is one.

    Raises:
        ValueError: all checkpoints of the run are broken, or the origin of a fork has none.
    """
    if (own := checkpoints.load_latest()) is not None:
        return Start(own=own)
    if broken := checkpoints.broken():
        raise ValueError(f"{checkpoints.path}: no intact checkpoint ({', '.join(broken)}); start a new run")
    return Start(origin=load_fork_origin(Path(cfg.fork), cfg.step)) if cfg.get("fork") else Start()


def start_checkpoints(cfg: DictConfig, run_dir: Path) -> list[Path]:
    """Return the checkpoints that the run may start from: its own, or else its origin's."""
    if steps := checkpoint_steps(run_dir):
        return [CheckpointFolder.of_run(run_dir).at(step) for step in steps]
    if not cfg.get("fork"):
        return []
    origin = Path(cfg.fork)
    return [CheckpointFolder.of_run(origin).at(step_to_fork(origin, cfg.step))]
