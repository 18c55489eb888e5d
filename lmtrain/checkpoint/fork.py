"""Starts a run from a checkpoint of another: its weights, and of the rest what still belongs to it."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.checkpoint.data_place import order_changes
from lmtrain.checkpoint.folder import Checkpoint, CheckpointFolder, load_checkpoint
from lmtrain.checkpoint.snapshot import Snapshot, TrainState, train_state
from lmtrain.checkpoint.steps import CHECKPOINTS, step_to_fork
from lmtrain.errors import BrokenCheckpointError
from lmtrain.files.links import refuse_links

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ForkOrigin:
    """The checkpoint that a fork starts from; `state` is what its run had done by then."""

    run: Path
    checkpoint: Checkpoint
    state: TrainState

    @property
    def record(self) -> dict[str, Any]:
        """Return what `environment.json` says of it."""
        return {"run": str(self.run.resolve()), "run_id": self.checkpoint.state.get("run_id"), "step": self.state.step}


def load_fork_origin(run: Path, step: int | None) -> ForkOrigin:
    """Return the run's checkpoint of a step, or its newest.

    Raises:
        ValueError: there is none, or it is broken.
    """
    refuse_links(run, [CHECKPOINTS], below=[CHECKPOINTS])
    try:
        checkpoint = load_checkpoint(CheckpointFolder.of_run(run).at(step_to_fork(run, step)))
    except BrokenCheckpointError as error:
        raise ValueError(f"fork={run}: {error}") from error
    if missing := {"model", "optimizer", "detector", "rng-0"} - checkpoint.tensors.keys():
        raise ValueError(f"fork={run}: its checkpoint has no {' and no '.join(sorted(missing))}")
    return ForkOrigin(run, checkpoint, train_state(checkpoint))


def forked_state(origin: ForkOrigin) -> TrainState:
    """Return where a fork begins: steps, tokens and seconds go on, so that its curves join its origin's.

    Its losses are not measured yet.
    """
    then = origin.state
    return TrainState(
        step=then.step, samples=then.samples, tokens=then.tokens, first_step=then.step, seconds=then.seconds
    )


def check_steps_left(origin: ForkOrigin, max_steps: int) -> None:
    """Raise ValueError if the fork would have no step to do."""
    if max_steps <= origin.state.step:
        raise ValueError(
            f"trainer.max_steps={max_steps}: the fork starts after step {origin.state.step}; give more, or an earlier "
            "step=N"
        )


def begin_fork(snapshot: Snapshot, origin: ForkOrigin, state: TrainState, batch_size: int) -> None:
    """Put the origin's state into the parts of the fork, and its place in the data into `state`.

    Weights always; the optimizer's state, if it is the same optimizer; the scaler's, if both have one; the random
    generators', if the seed is the same; the place in the data and the losses that spikes are measured against, if it
    is the same data in the same order. What is left out is logged.

    Raises:
        ValueError: the model is another one, the optimizer's state does not fit, or a file of the data was changed.
    """
    then, now = origin.checkpoint.state["config"], snapshot.identity["config"]
    fresh = []
    try:
        snapshot.model.load_state_dict(dict(origin.checkpoint.tensors["model"]))
    except RuntimeError as error:
        raise ValueError(f"fork={origin.run}: its checkpoint does not fit the model: {error}") from error
    if _chosen(then, "optimizer") == _chosen(now, "optimizer"):
        snapshot.restore_optimizer(origin.checkpoint)
    else:
        fresh.append("the optimizer's state")
    snapshot.restore_scaler(origin.checkpoint)
    if then["seed"] == now["seed"]:
        snapshot.system.load_generator_state(dict(origin.checkpoint.tensors["rng-0"]))
    else:
        fresh.append("the random generators")
    data = origin.checkpoint.state["data"]
    same = all(data[key] == snapshot.data[key] for key in ("fingerprints", "order_version"))
    if same:
        snapshot.check_contents(data)
    if same and not order_changes(then, now):
        snapshot.restore_detector(origin.checkpoint)
    else:
        state.samples = 0
        fresh.append("the order of the data")
    # A batch begins where one of this size can.
    state.samples = -(-state.samples // batch_size) * batch_size
    log.info("forked from %s at step %d%s", origin.run, state.step, f"; new: {', '.join(fresh)}" if fresh else "")


def _chosen(config: Mapping[str, Any], group: str) -> Any:
    return config[group].get("_target_")
