"""The whole state of a run as one checkpoint, and back: all that a bitwise resume needs."""

import copy
import logging
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

import torch

from lmtrain.checkpoint.data_place import order_changes
from lmtrain.checkpoint.folder import Checkpoint
from lmtrain.checkpoint.optimizer_state import (
    changed_groups,
    group_values,
    load_groups,
    load_optimizer_state,
    optimizer_state,
)
from lmtrain.data.loader import TokenLoader
from lmtrain.data.order import ORDER_VERSION
from lmtrain.errors import DataError
from lmtrain.loop.bad_steps import SpikeDetector
from lmtrain.loop.training_parts import Parts

log = logging.getLogger(__name__)

FORMAT_VERSION = 2
DATA_WAY_OUT = "put it back, give the folder it was moved to, or start a new run"
STATE_KEYS = frozenset({"config", "train", "optimizer", "optimizer_groups", "scaler", "data"})


@dataclass
class TrainState:
    """Where a run is; all of it is in every checkpoint."""

    step: int = 0  # optimizer steps done, bad ones among them
    samples: int = 0  # the place in the data order: samples trained on, or left out by a rewind
    tokens: int = 0  # target tokens trained on
    train_loss: float | None = None  # the last ones measured
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    bad_steps: int = 0  # so far, left out or gone back from
    bad_in_a_row: int = 0  # and how many of them the last one ended
    last_bad_step: int = 0
    rewound_to: int | None = None  # the step of the last rewind's checkpoint
    rewinds: int = 0  # to that checkpoint, so far
    first_step: int = 0  # where the run began: not at 0 if it was imported or is a fork
    regular_best_step: int | None = None  # the best one as of the last regular checkpoint, which a rewind goes back to
    pending: dict[str, float] | None = None  # metrics of this step, whose evaluation is still to come
    seconds: float = 0.0  # training, evaluating and saving, over all resumes

    @property
    def logged_step(self) -> int:
        """The last step whose line of metrics is complete."""
        return self.step if self.pending is None else self.step - 1

    def count_val_loss(self, loss: float) -> None:
        """Note the validation loss of this step, which may be the best so far."""
        self.val_loss = loss
        if math.isfinite(loss) and (self.best_val_loss is None or loss < self.best_val_loss):
            self.best_val_loss, self.best_step = loss, self.step

    def count_bad_step(self, step: int) -> None:
        """Count a bad step, and how many there were in a row up to it."""
        self.bad_steps += 1
        self.bad_in_a_row = self.bad_in_a_row + 1 if step == self.last_bad_step + 1 else 1
        self.last_bad_step = step

    def go_back(self, then: "TrainState") -> None:
        """Become what the run was `then`, but for what has happened since: the time, bad steps and rewinds."""
        rewinds = self.rewinds + 1 if self.rewound_to == then.step else 1
        since = {"seconds": self.seconds, "bad_steps": self.bad_steps, "rewound_to": then.step, "rewinds": rewinds}
        vars(self).update(vars(then) | since)


def train_state(checkpoint: Checkpoint) -> TrainState:
    """Return the TrainState of a checkpoint. Raises ValueError if it is of another format, or not lmtrain's."""
    if (version := checkpoint.state.get("format_version")) != FORMAT_VERSION:
        raise ValueError(f"the checkpoint has format version {version}; this lmtrain reads {FORMAT_VERSION}")
    if missing := STATE_KEYS - checkpoint.state.keys():
        raise ValueError(f"the checkpoint's state.json has no {' and no '.join(sorted(missing))}")
    try:
        state = TrainState(**checkpoint.state["train"])
    except TypeError as error:
        raise ValueError(f"the checkpoint's state.json has another train ({error})") from error
    for each in fields(state):
        value = getattr(state, each.name)
        if each.type is int and not (type(value) is int and 0 <= value < 1 << 63):
            raise ValueError(
                f"the checkpoint's state.json says train.{each.name}={str(value)[:40]}, which is no possible count"
            )
    return state


class Snapshot:
    """The state that makes up a run: `take` copies it into a checkpoint, `restore` puts it back into the parts.

    `identity` says what else the state belongs to: the run's id, its config, the versions of the software. Nothing is
    ever built from it.
    """

    def __init__(
        self, parts: Parts, scaler: torch.amp.GradScaler, detector: SpikeDetector, identity: Mapping[str, Any]
    ) -> None:
        self.model, self.optimizer, self.system = parts.model, parts.optimizer, parts.system
        self.loaders: Mapping[str, TokenLoader] = {"train": parts.train_loader, "val": parts.val_loader}
        self.scaler, self.detector, self.identity = scaler, detector, identity
        # The optimizer's own numbers before the first step.
        self.initial_groups = copy.deepcopy(group_values(parts.optimizer))

    @cached_property
    def data(self) -> dict[str, Any]:
        """What identifies the data that was opened; read once, as a file may be replaced while the run goes on."""
        return {
            "fingerprints": {split: loader.fingerprint for split, loader in self.loaders.items()},
            "order_version": ORDER_VERSION,
            "stamps": {split: getattr(loader, "file_stamps", {}) for split, loader in self.loaders.items()},
        }

    def take(self, state: TrainState) -> Checkpoint:
        """Return all of it, as it is now; the tensors are the parts' own."""
        tensors, plain = optimizer_state(self.optimizer, self.model.named_parameters())
        return Checkpoint(
            tensors={
                "model": self.model.state_dict(),
                "optimizer": tensors,
                "detector": {"window": self.detector.window},
                "rng-0": self.system.generator_state(),
            },
            state={
                **self.identity,
                "format_version": FORMAT_VERSION,
                "train": asdict(state),
                "optimizer": plain,
                "optimizer_groups": changed_groups(self.optimizer, self.initial_groups),
                "scaler": self.scaler.state_dict(),
                "data": self.data,
            },
            unchecked=frozenset(
                {*(f"model/{name}" for name, _ in self.model.named_buffers(remove_duplicate=False)), "detector/window"}
            ),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Put everything back but the TrainState.

        Raises:
            ValueError: the data is not what the run was trained on, or the model is another one.
        """
        if missing := {"model", "optimizer", "detector", "rng-0"} - checkpoint.tensors.keys():
            raise ValueError(f"the checkpoint has no {' and no '.join(sorted(missing))}")
        self._check_data(checkpoint.state["data"])
        try:
            self.model.load_state_dict(dict(checkpoint.tensors["model"]))
        except RuntimeError as error:
            raise ValueError(f"the checkpoint does not fit the model: {error}") from error
        self.restore_optimizer(checkpoint)
        self.restore_scaler(checkpoint)
        self.restore_detector(checkpoint)
        self.system.load_generator_state(dict(checkpoint.tensors["rng-0"]))

    def restore_optimizer(self, checkpoint: Checkpoint) -> None:
        """Put the optimizer's state back. Raises ValueError if it is of other parameters or groups."""
        self.optimizer.state.clear()
        load_optimizer_state(
            self.optimizer,
            self.model.named_parameters(),
            checkpoint.tensors["optimizer"],
            checkpoint.state["optimizer"],
        )
        load_groups(self.optimizer, self.initial_groups, checkpoint.state["optimizer_groups"])

    def restore_scaler(self, checkpoint: Checkpoint) -> None:
        """Put the gradient scaler's state back, if the run that saved had one and this run has one."""
        if checkpoint.state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])

    def restore_detector(self, checkpoint: Checkpoint) -> None:
        """Put back the losses that spikes are measured against; if this run keeps another number, they begin anew."""
        window = checkpoint.tensors["detector"]["window"]
        if window.shape == self.detector.window.shape:
            self.detector.window = window.to(self.detector.window.device, copy=True)

    def begin_order_anew_if_changed(self, checkpoint: Checkpoint, state: TrainState) -> None:
        """Move `state` to the start of the data order, and say so, if it is not the order of the checkpoint's run."""
        if changes := order_changes(checkpoint.state["config"], self.identity["config"]):
            log.warning(
                "another order of the data (%s): it begins anew, after %s samples of the old one",
                "; ".join(changes),
                f"{state.samples:,}",
            )
            state.samples = 0

    def check_batch_size(self, samples: int) -> None:
        """Raise ValueError if the next batch would begin in the middle of one that the run has seen."""
        batch_size = self.loaders["train"].batch_size
        if samples % batch_size:
            raise ValueError(
                f"data.batch_size={batch_size}: the run has seen {samples:,} samples, which is no whole number of such "
                "batches"
            )

    def _check_data(self, then: Mapping[str, Any]) -> None:
        path = self.loaders["train"].path
        now = self.data
        if then["order_version"] != ORDER_VERSION:
            raise ValueError(
                f"data.path={path}: the run was trained in the data order of version {then['order_version']}; this "
                f"lmtrain has version {ORDER_VERSION}"
            )
        other = [split for split in self.loaders if then["fingerprints"][split] != now["fingerprints"][split]]
        if other:
            raise ValueError(
                f"data.path={path}: not the data that this run was trained on (the {' and '.join(other)} split is "
                f"another); {DATA_WAY_OUT}"
            )
        self.check_contents(then)

    def check_contents(self, then: Mapping[str, Any]) -> None:
        """Compare files that were touched since `then` with their checksums; warn of those that have none.

        Raises:
            ValueError: a file is another.
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
                    "%s: the files of %s were changed or moved since the checkpoint, and have no meta.json: only their "
                    "sizes and ends could be compared",
                    path,
                    split,
                )
