"""Starts a run from a checkpoint of another run: its weights, and all other state that still fits the new config."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmtrain.checkpoint.data_place import order_changes
from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.several.parts import own_tensors
from lmtrain.checkpoint.snapshot import Snapshot, TrainState, train_state
from lmtrain.checkpoint.steps import CHECKPOINTS, step_to_fork
from lmtrain.errors import BrokenCheckpointError
from lmtrain.files.links import refuse_links
from lmtrain.loop.evaluation_weights import OF_OPTIMIZER, copy_into

log = logging.getLogger(__name__)

REQUIRED_FILES = frozenset({"model", "optimizer", "detector", "rng-0"})  # of a checkpoint, without their suffix


@dataclass(frozen=True)
class ForkOrigin:
    """Holds the checkpoint that a fork starts from, with its run directory and training state."""

    run: Path
    checkpoint: Checkpoint
    state: TrainState

    @property
    def record(self) -> dict[str, Any]:
        """The entry of `environment.json` that describes the origin, also for the time when its folder is gone."""
        then = self.checkpoint.state
        return {
            "run": str(self.run.resolve()),
            "run_id": then.get("run_id"),
            "step": self.state.step,
            "config": then["config"],
            "forked_from": then.get("forked_from"),
            **({"averaged_from": then["averaged_from"]} if "averaged_from" in then else {}),
        }


def load_fork_origin(run: Path, step: int | None) -> ForkOrigin:
    """Return the run's checkpoint of a step, or the newest one if `step` is None.

    Raises:
        ValueError: there is no such checkpoint, or it is broken.
    """
    refuse_links(run, [CHECKPOINTS], below=[CHECKPOINTS])
    try:
        checkpoint = load_checkpoint(CheckpointFolder.of_run(run).at(step_to_fork(run, step)))
    except BrokenCheckpointError as error:
        raise ValueError(f"fork={run}: {error}") from error
    if missing := REQUIRED_FILES - checkpoint.tensors.keys():
        raise ValueError(f"fork={run}: its checkpoint has no {' and no '.join(sorted(missing))}")
    return ForkOrigin(run, checkpoint, train_state(checkpoint))


def forked_state(origin: ForkOrigin) -> TrainState:
    """Return the training state in which a fork begins.

    Steps, tokens and seconds continue those of the origin, so that the curves of both runs join. Losses start without a
    value, since the fork has measured none.
    """
    then = origin.state
    return TrainState(
        step=then.step, samples=then.samples, tokens=then.tokens, first_step=then.step, seconds=then.seconds
    )


def check_steps_left(origin: ForkOrigin, max_steps: int) -> None:
    """Raise ValueError if the fork would have no steps left to run."""
    if max_steps <= origin.state.step:
        raise ValueError(
            f"trainer.max_steps={max_steps}: the fork starts after step {origin.state.step}; give more, or an earlier "
            "step=N"
        )


def begin_fork(snapshot: Snapshot, origin: ForkOrigin, state: TrainState, batch_size: int) -> None:
    """Load the origin's state into the parts of the fork, and its place in the data into `state`.

    Weights are always loaded. The optimizer's state is loaded if the optimizer is the same, the gradient scaler's if
    both runs have one, and the random generators' if the seed is the same. The place in the data and the losses for
    spike detection are kept if the data and its order are the same. The log names everything that starts again.

    Raises:
        ValueError: the model or the optimizer's state does not fit, or a data file has changed.
    """
    then, now = origin.checkpoint.state["config"], snapshot.identity["config"]
    fresh = []
    same_optimizer = _chosen(then, "optimizer") == _chosen(now, "optimizer")
    try:
        snapshot.restore_model(origin.checkpoint)
        if not same_optimizer:  # a schedule-free optimizer would begin where its model is good, and so does another one
            parallel, weights = snapshot.parallel, origin.checkpoint.tensors.get(OF_OPTIMIZER, {})
            copy_into(parallel.own(snapshot.model), own_tensors(OF_OPTIMIZER, weights, parallel.layout))
    except RuntimeError as error:
        raise ValueError(f"fork={origin.run}: its checkpoint does not fit the model: {error}") from error
    snapshot.restore_evaluation_weights(origin.checkpoint)
    if same_optimizer:
        snapshot.restore_optimizer(origin.checkpoint)
    else:
        fresh.append("the optimizer's state")
    snapshot.restore_scaler(origin.checkpoint)
    if then["seed"] == now["seed"]:
        snapshot.restore_generators(origin.checkpoint)
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
    # Round up to a multiple of this run's batch size, where its next batch can begin.
    state.samples = -(-state.samples // batch_size) * batch_size
    log.info("forked from %s at step %d%s", origin.run, state.step, f"; new: {', '.join(fresh)}" if fresh else "")


def _chosen(config: Mapping[str, Any], group: str) -> Any:
    """Return what is chosen in a group: one function may make several things, by their names."""
    return config[group].get("_target_"), config[group].get("name")
