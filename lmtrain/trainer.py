"""The training loop: micro-batches, backward, clip, step; evaluation, logging and checkpoints around it."""

import logging
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from lmtrain.checkpoint import Checkpoint, CheckpointFolder
from lmtrain.clock import StepClock
from lmtrain.data.loader import Prefetcher, TokenLoader, micro_batch, on_device
from lmtrain.data.order import VERSION as ORDER_VERSION
from lmtrain.data.tokens import DataError
from lmtrain.interrupt import InterruptedBySignal, SignalFlag
from lmtrain.logger.base import Logger
from lmtrain.optimizer import load_optimizer_state, optimizer_state
from lmtrain.system import System

log = logging.getLogger(__name__)

CHECKPOINT_VERSION = 1

Metrics = dict[str, float]


class Schedule(Protocol):
    def __call__(self, step: int, /) -> float:
        """The learning rate of the step that follows `step` finished ones."""


@dataclass
class TrainState:
    """Where a run is; all of it is in every checkpoint."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # target tokens trained on
    train_loss: float | None = None  # the last ones measured
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int | None = None
    seconds: float = 0.0  # training, evaluating and saving, over all resumes


class DivergedError(RuntimeError):
    """The loss is no longer a number."""


class Trainer:
    """Trains `model` on `train_loader`, evaluates it on `val_loader`, logs and saves, until `max_steps`.

    The gradient of a step is that of the mean loss over all target tokens of its `gradient_accumulation_steps`
    micro-batches together, however they are cut and however many targets each of them has. The learning rate of a
    parameter group is the schedule's times the group's `lr_scale`, if it has one.

    `grad_clip` is the largest global gradient norm (0: no limit); `eval_batches` limits an evaluation (null: the whole
    split); `eval_train_batches` evaluates that many batches of the training split as well (0: none); the newest
    `keep_checkpoints` stay, and the best, which an evaluation that improves makes at once.

    Raises:
        DataError: from `fit`, when token files turn out to be damaged; everything is saved.
        DivergedError: from `fit`, when a loss or gradient norm that is looked at is not finite.
        InterruptedBySignal: from `fit`, after SIGINT or SIGTERM, when everything is saved.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        train_loader: TokenLoader,
        val_loader: TokenLoader,
        system: System,
        logger: Logger,
        checkpoints: CheckpointFolder,
        state: TrainState,
        *,
        max_steps: PositiveInt,
        gradient_accumulation_steps: PositiveInt,
        grad_clip: NonNegativeFloat,
        eval_interval: PositiveInt,
        eval_batches: PositiveInt | None,
        eval_train_batches: NonNegativeInt,
        log_interval: PositiveInt,
        checkpoint_interval: PositiveInt,
        keep_checkpoints: PositiveInt,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.system = model, optimizer, schedule, system
        self.train_loader, self.val_loader = train_loader, val_loader
        self.logger, self.checkpoints, self.state = logger, checkpoints, state
        self.max_steps, self.gradient_accumulation_steps = max_steps, gradient_accumulation_steps
        self.grad_clip = grad_clip or math.inf
        self.eval_interval, self.eval_batches, self.eval_train_batches = eval_interval, eval_batches, eval_train_batches
        self.log_interval, self.checkpoint_interval = log_interval, checkpoint_interval
        self.keep_checkpoints = keep_checkpoints
        self.forward = system.compile(model)
        self.scaler = system.scaler()
        self.params = [param for param in model.parameters() if param.requires_grad]
        self.clock = StepClock(state.step)

    def fit(self) -> None:
        """Runs the steps that are left; the state afterwards is that of the last one."""
        try:
            self._fit()
        except DataError:  # between two steps: the last one is whole, and shall not be lost
            if self.state.step and all(bool(param.isfinite().all()) for param in self.params):
                self._save()
            raise

    def _fit(self) -> None:
        state, first_micro_batch = self.state, self.state.step * self.gradient_accumulation_steps
        started = time.perf_counter() - state.seconds
        self.model.train()
        with (
            Prefetcher(self.train_loader.batch, first_micro_batch, self.system.device) as self.micro_batches,
            SignalFlag() as stop,
        ):
            self.clock = StepClock(state.step)
            while state.step < self.max_steps:
                loss, grad_norm = self.step()
                last = state.step == self.max_steps
                stopped = stop.signal  # once, as it may come at any moment: what stops the run saves it, too
                metrics: Metrics = {}
                if state.step % self.log_interval == 0 or last or state.step == 1:
                    metrics |= self._train_metrics(loss, grad_norm)
                evaluates = state.step % self.eval_interval == 0 or last
                saves = state.step % self.checkpoint_interval == 0 or last or stopped
                if evaluates or saves:
                    self.system.synchronize()  # what the device still has to do belongs to the steps
                with self.clock.paused():
                    if evaluates:
                        try:
                            metrics |= self._eval_metrics()
                        except DataError:
                            self.logger.log(state.step, metrics)  # what is known of the step
                            raise
                    if metrics:
                        self.logger.log(state.step, metrics)
                    saves = saves or state.best_step == state.step  # the best model is worth a checkpoint
                    if metrics or saves:
                        self._stop_if_diverged(loss, grad_norm)
                    state.seconds = time.perf_counter() - started
                    if saves:
                        self._save()
                if stopped and not last:
                    raise InterruptedBySignal(stopped, state.step)

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step; its loss (nats a token) and gradient norm, as tensors that nobody has waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.state.step) * group.get("lr_scale", 1.0)
        micro_batches = [next(self.micro_batches) for _ in range(self.gradient_accumulation_steps)]
        targets = sum(batch.targets for batch in micro_batches)
        total = torch.zeros((), device=self.system.device)
        for batch in micro_batches:
            if batch.targets == 0:
                continue  # its mean is 0 / 0
            with self.system.autocast():
                _, loss = self.forward(batch.x, batch.y)  # the mean over this micro-batch's targets
            loss = loss * (batch.targets / targets)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.params, self.grad_clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.state.tokens += targets
        return total, grad_norm

    def evaluate(self, loader: TokenLoader, batches: int | None) -> float:
        """Mean loss in nats a token over the whole split (`batches` null), or over that many batches of the loader."""
        source = loader.whole_split() if batches is None else map(loader.batch, range(batches))
        return evaluate(self.model, self.forward, source, self.system)

    def checkpoint(self) -> Checkpoint:
        """All that a bitwise resume needs."""
        tensors, plain = optimizer_state(self.optimizer, self.model.named_parameters())
        return Checkpoint(
            tensors={
                "model": self.model.state_dict(),
                "optimizer": tensors,
                "rng-0": self.system.generator_state(),
            },
            state={
                "format_version": CHECKPOINT_VERSION,
                "train": asdict(self.state),
                "optimizer": plain,
                "scaler": self.scaler.state_dict(),
                "data": self._data_identity(),
            },
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts everything back except `state`, which train() has read already.

        Raises:
            ValueError: the data is not what the run was trained on, or the model is another one.
        """
        version = checkpoint.state["format_version"]
        if version != CHECKPOINT_VERSION:
            raise ValueError(f"the checkpoint has format version {version}; this lmtrain reads {CHECKPOINT_VERSION}")
        then, now = checkpoint.state["data"], self._data_identity()
        if then != now:
            other = [
                split for split, print_ in now["fingerprints"].items() if then["fingerprints"].get(split) != print_
            ]
            what = f"the {' and '.join(other)} split" if other else f"the order of version {then['order_version']}"
            raise ValueError(
                f"data.path={self.train_loader.path}: not the data that this run was trained on ({what} is another); "
                "put it back, give the folder it was moved to, or start a new run"
            )
        try:
            self.model.load_state_dict(dict(checkpoint.tensors["model"]))
        except RuntimeError as error:
            raise ValueError(f"the checkpoint does not fit the model: {error}") from error
        load_optimizer_state(
            self.optimizer,
            self.model.named_parameters(),
            checkpoint.tensors["optimizer"],
            checkpoint.state["optimizer"],
        )
        if checkpoint.state["scaler"] and self.scaler.is_enabled():
            self.scaler.load_state_dict(checkpoint.state["scaler"])
        self.system.load_generator_state(dict(checkpoint.tensors["rng-0"]))

    def _save(self) -> None:
        state = self.state
        self.checkpoints.save(state.step, self.checkpoint(), keep=self.keep_checkpoints, best_step=state.best_step)

    def _data_identity(self) -> dict[str, Any]:
        loaders = {"train": self.train_loader, "val": self.val_loader}
        return {
            "fingerprints": {split: loader.fingerprint for split, loader in loaders.items()},
            "order_version": ORDER_VERSION,
        }

    def _train_metrics(self, loss: Tensor, grad_norm: Tensor) -> Metrics:
        self.state.train_loss = loss.item()  # waits for the device: only here, where the step is logged
        seconds = self.clock.lap(self.state.step)
        tokens = self.train_loader.batch_size * self.train_loader.block_size * self.gradient_accumulation_steps
        metrics = {
            "train/loss": self.state.train_loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": grad_norm.item(),
            "tokens": self.state.tokens,
            "tokens_per_second": tokens / seconds,
            "step_time_ms": 1000 * seconds,
            "memory_gb": self.system.memory_gb(),
        }
        if peak := self.system.peak_flops():
            metrics["mfu"] = flops_per_token(self.model, self.train_loader.block_size) * tokens / seconds / peak
        return metrics

    def _eval_metrics(self) -> Metrics:
        state = self.state
        state.val_loss = self.evaluate(self.val_loader, self.eval_batches)
        metrics = {"val/loss": state.val_loss, "val/perplexity": perplexity(state.val_loss)}
        loader, whole = self.val_loader, self.eval_batches is None
        if bytes_per_token := loader.bytes_per_token if whole else loader.sampled_bytes_per_token:
            metrics["val/bits_per_byte"] = state.val_loss / math.log(2) / bytes_per_token
        if self.eval_train_batches:
            metrics["train_eval/loss"] = self.evaluate(self.train_loader, self.eval_train_batches)
        if math.isfinite(state.val_loss) and (state.best_val_loss is None or state.val_loss < state.best_val_loss):
            state.best_val_loss, state.best_step = state.val_loss, state.step
        return metrics

    def _stop_if_diverged(self, loss: Tensor, grad_norm: Tensor) -> None:
        """Before a state is saved: a gradient that is no number has made the weights none.

        Under float16 the scaler leaves such a step out, and the weights as they were.
        """
        numbers = {"training loss": loss.item(), "validation loss": self.state.val_loss or 0.0}
        if not self.scaler.is_enabled():
            numbers["gradient norm"] = grad_norm.item()
        for name, number in numbers.items():
            if not math.isfinite(number):
                raise DivergedError(f"the {name} of step {self.state.step} is {number}; try a smaller optimizer.lr")


def evaluate(
    model: nn.Module, forward: Callable[..., Any], batches: Iterable[tuple[Tensor, Tensor]], system: System
) -> float:
    """Mean loss in nats over all target tokens of the batches; changes neither the model nor torch's generators."""
    total = torch.zeros((), dtype=torch.float64, device=system.device)
    targets = 0
    training = model.training
    model.eval()
    devices = [system.device] if system.device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        for x, y in batches:
            batch = on_device(micro_batch(x, y, pin=system.device.type == "cuda"), system.device)
            with system.autocast():
                _, loss = forward(batch.x, batch.y)
            total += loss.double() * batch.targets
            targets += batch.targets
    model.train(training)
    return float(total / targets)


def perplexity(loss: float) -> float:
    """exp(loss), infinite where a float can't hold it."""
    return math.exp(loss) if loss < 700 else math.inf


def flops_per_token(model: nn.Module, block_size: int) -> int:
    """What the model says of itself, else 6 FLOPs a parameter (Kaplan et al. 2020, section 2.1)."""
    count: Callable[[int], int] | None = getattr(model, "flops_per_token", None)
    return count(block_size) if count else 6 * sum(param.numel() for param in model.parameters())
