"""Turns the whole state of a run into a checkpoint and back: everything that a bitwise resume needs."""

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch

from lmtrain.checkpoint.data_place import order_changes
from lmtrain.checkpoint.files import Checkpoint
from lmtrain.checkpoint.optimizer_state import (
    changed_groups,
    group_values,
    load_groups,
    load_optimizer_state,
    optimizer_state,
)
from lmtrain.checkpoint.several.parts import load_model, local_parts, own_tensors, own_values, part_of
from lmtrain.data.loader import TokenLoader
from lmtrain.data.order import ORDER_VERSION
from lmtrain.errors import DataError
from lmtrain.hardware.generators import seed_of_rank
from lmtrain.loop.bad_steps import SpikeDetector
from lmtrain.loop.evaluation_weights import EvaluationWeights
from lmtrain.loop.training_parts import Parts
from lmtrain.optimizer.grouped import GroupedOptimizer
from lmtrain.terminal.units import counted

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
DATA_WAY_OUT = "put it back, give the folder it was moved to, or start a new run"
STATE_KEYS = frozenset({"config", "train", "optimizer", "optimizer_groups", "scaler", "data"})


@dataclass
class TrainState:
    """Holds the progress of a run; every checkpoint contains it."""

    step: int = 0  # optimizer steps done, including bad ones
    samples: int = 0  # the place in the data order: samples trained on, or skipped by a rewind
    tokens: int = 0  # target tokens trained on
    train_loss: float | None = None  # the last measured losses
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    bad_steps: int = 0  # bad steps so far, whether skipped or undone by a rewind
    bad_in_a_row: int = 0  # consecutive bad steps up to the last bad one
    last_bad_step: int = 0
    rewound_to: int | None = None  # the checkpoint of the last rewind
    rewinds: int = 0  # rewinds to that checkpoint so far
    first_step: int = 0  # where the run began: not 0 if it was imported or forked
    regular_best_step: int | None = None  # best_step at the last regular checkpoint, to which a rewind goes back
    pending: dict[str, float] | None = None  # metrics of this step if its evaluation was interrupted
    seconds: float = 0.0  # seconds of training, evaluating and saving, over all resumes

    @property
    def logged_step(self) -> int:
        """The last step whose metrics are completely logged."""
        return self.step if self.pending is None else self.step - 1

    def count_val_loss(self, loss: float) -> None:
        """Record the validation loss of this step, which may be the best so far."""
        self.val_loss = loss
        if math.isfinite(loss) and (self.best_val_loss is None or loss < self.best_val_loss):
            self.best_val_loss, self.best_step = loss, self.step

    def count_bad_step(self, step: int) -> int:
        """Count a bad step; return how many consecutive bad steps end with it."""
        self.bad_steps += 1
        self.bad_in_a_row = self.bad_in_a_row + 1 if step == self.last_bad_step + 1 else 1
        self.last_bad_step = step
        return self.bad_in_a_row

    def go_back(self, then: "TrainState") -> None:
        """Return to an earlier state, but keep the time, the number of bad steps and the rewinds since then."""
        rewinds = self.rewinds + 1 if self.rewound_to == then.step else 1
        since = {"seconds": self.seconds, "bad_steps": self.bad_steps, "rewound_to": then.step, "rewinds": rewinds}
        vars(self).update(vars(then) | since)


def train_state(checkpoint: Checkpoint) -> TrainState:
    """Return the TrainState of a checkpoint; raise ValueError if its format is not the one of this lmtrain."""
    if (version := checkpoint.state.get("format_version")) != FORMAT_VERSION:
        raise ValueError(f"the checkpoint has format version {version}, but this lmtrain reads {FORMAT_VERSION}")
    if missing := STATE_KEYS - checkpoint.state.keys():
        raise ValueError(f"the checkpoint's state.json has no {' and no '.join(sorted(missing))}")
    try:
        state = TrainState(**checkpoint.state["train"])
    except TypeError as error:
        raise ValueError(f"the checkpoint's state.json has an unexpected entry in train ({error})") from error
    for each in fields(state):
        value = getattr(state, each.name)
        if each.type is int and not (type(value) is int and 0 <= value < 1 << 63):
            raise ValueError(
                f"the checkpoint's state.json says train.{each.name}={str(value)[:40]}, which is not a valid count"
            )
    return state


class Snapshot:
    """Connects the parts of a run with its checkpoints: `take` returns their state, `restore` loads it back.

    `identity` records where the state comes from: the run's id, its config, and the software versions. Nothing is ever
    built from it.
    """

    def __init__(
        self,
        parts: Parts,
        scaler: torch.amp.GradScaler,
        detector: SpikeDetector,
        evaluation_weights: EvaluationWeights,
        identity: Mapping[str, Any],
    ) -> None:
        self.model, self.optimizer, self.system = parts.model, parts.optimizer, parts.system
        self.parallel, self.updated = parts.parallel, parts.updated
        self.loaders: Mapping[str, TokenLoader] = {"train": parts.train_loader, "val": parts.val_loader}
        self.scaler, self.detector, self.identity = scaler, detector, identity
        self.evaluation_weights = evaluation_weights
        # The values of the optimizer's groups before the first step.
        self.initial_groups = copy.deepcopy(group_values(parts.optimizer))

    @cached_property
    def data(self) -> dict[str, Any]:
        """Identifies the data that was opened. It is read once, since a file may be replaced during the run."""
        return {
            "fingerprints": {split: loader.fingerprint for split, loader in self.loaders.items()},
            "order_version": ORDER_VERSION,
            "stamps": {split: getattr(loader, "file_stamps", {}) for split, loader in self.loaders.items()},
        }

    def take(self, state: TrainState) -> Checkpoint:
        """Return the current state of the run, which all of its processes must ask for at the same time.

        The tensors are those of the parts, not copies. Processes that share the model return their own part each.
        """
        tensors, plain = optimizer_state(self.optimizer, self.updated.items())
        evaluated, generators = self.evaluation_weights, self.parallel.gathered(self.system.generator_state())
        checkpoint = Checkpoint(
            tensors={
                "model": local_parts(self.model.state_dict(), self.parallel.layout),
                **({evaluated.file: evaluated.values()} if evaluated.file else {}),
                "optimizer": tensors,
                "detector": {"window": self.detector.window},
                **{f"rng-{rank}": state for rank, state in enumerate(generators)},
            },
            state={
                **self.identity,
                "format_version": FORMAT_VERSION,
                "train": asdict(state),
                "optimizer": self.parallel.merged(plain),
                "optimizer_groups": changed_groups(self.optimizer, self.initial_groups),
                "scaler": self.scaler.state_dict(),
                "data": self.data,
            },
            unchecked=frozenset(
                {*(f"model/{name}" for name, _ in self.model.named_buffers(remove_duplicate=False)), "detector/window"}
            ),
        )
        return part_of(checkpoint, self.parallel)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore everything except the TrainState.

        Raises:
            ValueError: the data is not the data that the run was trained on, or the model does not fit.
        """
        if missing := {"model", "optimizer", "detector", "rng-0"} - checkpoint.tensors.keys():
            raise ValueError(f"the checkpoint has no {' and no '.join(sorted(missing))}")
        self._check_data(checkpoint.state["data"])
        try:
            self.restore_model(checkpoint)
        except RuntimeError as error:
            raise ValueError(f"the checkpoint does not fit the model: {error}") from error
        self.restore_evaluation_weights(checkpoint)
        self.restore_optimizer(checkpoint)
        self.restore_scaler(checkpoint)
        self.restore_detector(checkpoint)
        self.restore_generators(checkpoint)

    def restore_model(self, checkpoint: Checkpoint) -> None:
        """Restore the weights; raise RuntimeError if the model has other ones."""
        load_model(self.model, checkpoint.tensors["model"], self.parallel)

    def restore_generators(self, checkpoint: Checkpoint) -> None:
        """Restore the generators of this process; a process that the saved run did not have begins new ones."""
        rank, config = self.parallel.world.rank, checkpoint.state["config"]
        if (saved := checkpoint.tensors.get(f"rng-{rank}")) is not None:
            self.system.load_generator_state(dict(saved))
        else:
            self.system.seed(seed_of_rank(config["seed"], rank, checkpoint.state["train"]["step"]))

    def restore_optimizer(self, checkpoint: Checkpoint) -> None:
        """Restore the optimizer's state; raise ValueError if its parameters or groups do not fit.

        Parameters that another algorithm updates now, because the rules have changed, start without a state.
        """
        self.optimizer.state.clear()
        load_optimizer_state(
            self.optimizer,
            self.updated.items(),
            own_tensors("optimizer", checkpoint.tensors["optimizer"], self.parallel.layout),
            own_values(checkpoint.state["optimizer"], self.parallel.layout),
        )
        load_groups(self.optimizer, self.initial_groups, checkpoint.state["optimizer_groups"])
        if isinstance(self.optimizer, GroupedOptimizer) and (dropped := self.optimizer.drop_other_states()):
            log.warning("%s had another algorithm before, and start without a state", counted(dropped, "tensor"))

    def restore_evaluation_weights(self, checkpoint: Checkpoint) -> None:
        """Restore the weights for evaluation; a running mean that is not there begins with the weights of training."""
        file = self.evaluation_weights.file or ""
        self.evaluation_weights.restore(own_tensors(file, checkpoint.tensors.get(file, {}), self.parallel.layout))

    def restore_scaler(self, checkpoint: Checkpoint) -> None:
        """Restore the gradient scaler's state, if the saved run and this run both have a scaler."""
        if checkpoint.state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])

    def restore_detector(self, checkpoint: Checkpoint) -> None:
        """Restore the window of the spike detector. A window of another size starts empty."""
        window = checkpoint.tensors["detector"]["window"]
        if window.shape == self.detector.window.shape:
            self.detector.window = window.to(self.detector.window.device, copy=True)

    def begin_order_anew_if_changed(self, checkpoint: Checkpoint, state: TrainState) -> None:
        """Move `state` to the start of the data order, with a warning, if the order differs from the checkpoint's."""
        if changes := order_changes(checkpoint.state["config"], self.identity["config"]):
            log.warning(
                "the data order has changed (%s): the run starts at its beginning, after %s samples of the old order",
                "; ".join(changes),
                f"{state.samples:,}",
            )
            state.samples = 0

    def check_batch_size(self, samples: int) -> None:
        """Raise ValueError if the next batch would begin inside a batch that the run has already seen."""
        batch_size, processes = self.loaders["train"].batch_size, self.parallel.world.size
        if samples % (batch_size * processes):
            if processes > 1:
                raise ValueError(
                    f"the {samples:,} samples that the run has already seen are not whole batches of {processes} "
                    f"processes with data.batch_size={batch_size}; start another number of processes, such as 1"
                )
            raise ValueError(
                f"data.batch_size={batch_size}: must divide the {samples:,} samples that the run has already seen"
            )

    def _check_data(self, then: Mapping[str, Any]) -> None:
        path = self.loaders["train"].path
        now = self.data
        if then["order_version"] != ORDER_VERSION:
            raise ValueError(
                f"data.path={path}: the run was trained with version {then['order_version']} of the data order, but "
                f"this lmtrain has version {ORDER_VERSION}"
            )
        other = [split for split in self.loaders if then["fingerprints"][split] != now["fingerprints"][split]]
        if other:
            raise ValueError(
                f"data.path={path}: not the data that this run was trained on (another {' and '.join(other)} split); "
                f"{DATA_WAY_OUT}"
            )
        self.check_contents(then)

    def check_contents(self, then: Mapping[str, Any]) -> None:
        """Compare files that changed since `then` with their checksums; warn if there are no checksums.

        Raises:
            ValueError: a file does not have its checksum.
        """
        path = self.loaders["train"].path
        for split, loader in self.loaders.items():
            if then["stamps"][split] == self.data["stamps"][split]:
                continue
            try:
                checked = loader.check_contents()
            except DataError as error:
                raise ValueError(
                    f"data.path={path}: not the data that this run was trained on: {error}; {DATA_WAY_OUT}"
                ) from error
            if not checked:
                log.warning(
                    "%s: the files of %s were changed or moved since the checkpoint; without a meta.json, only their "
                    "sizes and ends could be compared",
                    path,
                    split,
                )
