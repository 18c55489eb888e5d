"""The training loop: micro-batches, backward, clip, step; evaluation, logging and checkpoints around it."""

import copy
import logging
import math
import time
from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lmtrain.checkpoint.folder import Checkpoint, Retention
from lmtrain.checkpoint.optimizer_state import group_values
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import Snapshot, TrainState, train_state
from lmtrain.data.loader import TokenLoader
from lmtrain.data.prefetch import Prefetcher
from lmtrain.errors import DataError, DivergedError
from lmtrain.logger.base import RunLogger
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.bad_steps import BadStep, RewindError, SpikeDetector, Watch
from lmtrain.loop.evaluation import evaluate, perplexity
from lmtrain.loop.step_clock import StepClock
from lmtrain.loop.stop_request import StopRequest
from lmtrain.loop.update import update
from lmtrain.model.flops import flops_per_token
from lmtrain.system import System

log = logging.getLogger(__name__)

MAX_IN_A_ROW = 20  # bad steps, before the model is at fault and not the data
MAX_REWINDS = 3  # to one checkpoint, likewise
LOOK_STEPS = 10  # between looks for a request to be pruned; on a network file system each may take a millisecond

Metrics = dict[str, float]


class Schedule(Protocol):
    def __call__(self, step: int, /) -> float:
        """The learning rate of the step that follows `step` finished ones."""


class Trainer:
    """Trains `model` on `train_loader`, evaluates it on `val_loader`, logs and saves, until `max_steps`.

    The gradient of a step is that of the mean loss over all target tokens of its `gradient_accumulation_steps`
    micro-batches together, however they are cut and however many targets each of them has. The learning rate of a
    parameter group is the schedule's times the group's `lr_scale`, if it has one.

    `grad_clip` is the largest global gradient norm (0: no limit); `eval_batches` limits an evaluation (null: the whole
    split); `eval_train_batches` evaluates that many batches of the training split as well (0: none). The newest
    `keep_checkpoints` stay, those of every `keep_every` steps (null: none), and the best, which an evaluation that
    improves makes at once.

    A step whose loss or gradient norm is not finite, or a spike (more than `spike_zscore` robust standard deviations
    above the last `spike_window` good steps; null: no such check), is bad. That is decided on the device, and the
    update left out there; its batch is kept for a look. Then `on_bad_step` says: `stop`; `skip`: go on; or `rewind`: go
    back to the last regular checkpoint, and on from there with the data after the bad step.

    Raises:
        DataError: from `fit`, when token files turn out to be damaged; everything is saved.
        DivergedError: from `fit`, after a bad step.
        NonFiniteStateError: from `fit`, when the state to be saved has numbers that are not finite.
        InterruptedBySignal, PrunedError: from `fit`, when everything is saved.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        schedule: Schedule,
        train_loader: TokenLoader,
        val_loader: TokenLoader,
        system: System,
        logger: RunLogger,
        saver: Saver,
        bad_batches: BadBatches,
        stop: StopRequest,
        state: TrainState,
        record: Mapping[str, Any],
        *,
        max_steps: PositiveInt,
        gradient_accumulation_steps: PositiveInt,
        grad_clip: NonNegativeFloat,
        on_bad_step: Literal["stop", "skip", "rewind"],
        spike_zscore: PositiveFloat | None,
        spike_window: PositiveInt,
        eval_interval: PositiveInt,
        eval_batches: PositiveInt | None,
        eval_train_batches: NonNegativeInt,
        log_interval: PositiveInt,
        checkpoint_interval: PositiveInt,
        keep_checkpoints: PositiveInt,
        keep_every: PositiveInt | None,
    ) -> None:
        self.model, self.optimizer, self.schedule, self.system = model, optimizer, schedule, system
        self.train_loader, self.val_loader = train_loader, val_loader
        self.logger, self.saver, self.bad_batches, self.stop, self.state = logger, saver, bad_batches, stop, state
        self.max_steps, self.gradient_accumulation_steps = max_steps, gradient_accumulation_steps
        self.step_samples = gradient_accumulation_steps * train_loader.batch_size
        self.grad_clip, self.on_bad_step = grad_clip or math.inf, on_bad_step
        self.eval_interval, self.eval_batches, self.eval_train_batches = eval_interval, eval_batches, eval_train_batches
        self.log_interval, self.checkpoint_interval = log_interval, checkpoint_interval
        self.keep_checkpoints, self.keep_every = keep_checkpoints, keep_every
        self.forward = system.compile(model)
        self.scaler = system.scaler()
        self.params = [param for param in model.parameters() if param.requires_grad]
        scaled = self.scaler.is_enabled()
        self.detector = SpikeDetector(spike_zscore, spike_window, system.device, ignore_norm=scaled)
        loaders = {"train": train_loader, "val": val_loader}
        groups = copy.deepcopy(group_values(optimizer))
        self.snapshot = Snapshot(model, optimizer, groups, self.scaler, system, self.detector, loaders, record)
        self.watch, self.clock = Watch(spike_zscore), StepClock(state.step)

    def fit(self) -> None:
        """Runs the steps that are left; the state afterwards is that of the last one."""
        rewinds: list[int] = []
        with self.saver:
            while True:
                try:
                    return self._fit()
                except RewindError as error:
                    rewinds.append(self._rewind(error.bad))
                    if rewinds.count(rewinds[-1]) > MAX_REWINDS:
                        raise DivergedError(f"{error}, and {MAX_REWINDS} rewinds did not help") from error
                except DataError:  # between two steps: the last one is whole, and shall not be lost
                    if self.state.step:
                        self._save()
                    raise

    def _fit(self) -> None:
        state, batch_size = self.state, self.train_loader.batch_size
        self._started = time.perf_counter() - state.seconds
        self.watch = Watch(self.detector.zscore)
        self.model.train()
        with Prefetcher(self.train_loader.batch, state.samples // batch_size, self.system.device) as self.micro_batches:
            self.clock = StepClock(state.step)
            if state.pending is not None:
                self._finish_step(state.pending, evaluates=True, saves=True)
            while state.step < self.max_steps:
                try:
                    loss, grad_norm = self.step()
                except DataError:
                    self._answer_bad_steps(newest=True)
                    raise
                if not self.stop.defers:  # the first step of this process, before which there was nothing new to save
                    self.stop.defers = True
                    self.saver.reserve(self.checkpoint())
                last = state.step == self.max_steps
                logs = state.step % self.log_interval == 0 or last or state.step == 1
                evaluates = state.step % self.eval_interval == 0 or last
                # Once, as it may come at any moment: what stops the run saves it, too.
                asked = self.stop.asked(looks=logs or evaluates or state.step % LOOK_STEPS == 0)
                saves = state.step % self.checkpoint_interval == 0 or last or asked is not None
                self.saver.check()
                self._answer_bad_steps(newest=logs or evaluates or saves)
                metrics = self._train_metrics(loss, grad_norm) if logs else {}
                if evaluates or saves:
                    self.system.synchronize()  # what the device still has to do belongs to the steps
                self._finish_step(metrics, evaluates=evaluates, saves=saves)
                if asked is not None and not last:
                    self.saver.wait()  # else its error would come too late to count
                    raise asked

    def step(self) -> tuple[Tensor, Tensor]:
        """One optimizer step; its loss (nats a token) and gradient norm, as tensors that nobody has waited for."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self.state.step) * group.get("lr_scale", 1.0)
        micro_batches = [next(self.micro_batches) for _ in range(self.gradient_accumulation_steps)]
        targets = sum(batch.n_targets for batch in micro_batches)
        if not targets:
            raise DataError(f"{self.train_loader.path}: the batch of step {self.state.step + 1} has no target at all")
        total, losses = torch.zeros((), device=self.system.device), []
        for batch in micro_batches:
            if batch.n_targets == 0:
                losses.append(torch.zeros_like(total))
                continue  # its mean is 0 / 0
            with self.system.autocast():
                _, loss = self.forward(batch.x, batch.y)  # the mean over this micro-batch's targets
            losses.append(loss.detach())
            loss = loss * (batch.n_targets / targets)
            self.scaler.scale(loss).backward()
            total += loss.detach()
        self.scaler.unscale_(self.optimizer)
        grad_norm = nn.utils.clip_grad_norm_(self.params, self.grad_clip)
        verdict = self.detector.judge(total, grad_norm)
        update(self.optimizer, self.scaler, verdict.bad)
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1
        self.watch.note(self.state.step, self.state.samples, total, grad_norm, verdict, losses)
        self.state.samples += self.step_samples
        self.state.tokens += targets
        return total, grad_norm

    def evaluate(self, loader: TokenLoader, batches: int | None) -> float:
        """Mean loss in nats a token over the whole split (`batches` null), or over that many batches of the loader."""
        source = loader.whole_split() if batches is None else map(loader.batch, range(batches))
        return evaluate(self.model, self.forward, source, self.system)

    def checkpoint(self) -> Checkpoint:
        """All that a bitwise resume needs."""
        return self.snapshot.take(self.state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Puts everything back except `state`, which train() has read already.

        Raises:
            ValueError: the data is not what the run was trained on, the model is another one, or a batch would begin
                in the middle of one that the run has seen.
        """
        self.snapshot.restore(checkpoint)
        if self.state.samples % self.train_loader.batch_size:
            raise ValueError(
                f"data.batch_size={self.train_loader.batch_size}: the run has seen {self.state.samples:,} samples, "
                "which is no whole number of such batches"
            )

    def _finish_step(self, metrics: Metrics, *, evaluates: bool, saves: bool) -> None:
        """What comes after the update: evaluation, the line in the log, a checkpoint."""
        state = self.state
        with self.clock.paused():
            if evaluates:
                metrics = self._evaluated(metrics)
            if metrics:
                state.seconds = self._seconds()
                axes = {"tokens": state.tokens, "seconds": state.seconds}  # what curves are drawn over
                self.logger.log(state.step, metrics | axes)
            if evaluates and not math.isfinite(state.val_loss or 0.0) and self.on_bad_step == "stop":
                raise DivergedError(f"the validation loss of step {state.step} is {state.val_loss}")
            if saves or state.best_step == state.step:  # the best model is worth a checkpoint
                self._save()

    def _evaluated(self, metrics: Metrics) -> Metrics:
        """The metrics with those of an evaluation; if that is cut short, the step is saved without, and evaluated when
        the run goes on."""
        generators = self.system.generator_state()
        try:
            with self.stop.at_once():
                metrics = metrics | self._eval_metrics()
        except BaseException:  # a signal, no memory, damaged data: the step itself is whole
            self.system.load_generator_state(generators)
            self.state.pending = metrics
            self._save()
            self.saver.wait()
            raise
        self.state.pending = None
        return metrics

    def _save(self) -> None:
        state = self.state
        state.seconds = self._seconds()
        regular = state.step - state.step % self.checkpoint_interval
        if regular == state.step:
            state.regular_best_step = state.best_step
        # What a rewind goes back to, and finds there, does not depend on when the run was stopped or evaluated.
        rewinds = {max(regular, state.first_step), state.regular_best_step or 0}
        protected = frozenset(rewinds) if self.on_bad_step == "rewind" else frozenset()
        retention = Retention(self.keep_checkpoints, self.keep_every, state.best_step, protected)
        self.saver.save(state.step, self.checkpoint(), retention)

    def _answer_bad_steps(self, *, newest: bool) -> None:
        for bad in self.watch.bad_steps(newest=newest):
            path = self.bad_batches.keep(bad)
            state = self.state
            state.bad_steps += 1
            state.bad_in_a_row = state.bad_in_a_row + 1 if bad.step == state.last_bad_step + 1 else 1
            state.last_bad_step = bad.step
            if state.bad_in_a_row > MAX_IN_A_ROW:
                raise DivergedError(f"{bad}, as were the {MAX_IN_A_ROW} steps before it")
            match self.on_bad_step:
                case "stop":
                    raise DivergedError(
                        f"{bad}; its update was left out, its batch is in {path}; try a smaller optimizer.lr, or "
                        "trainer.on_bad_step=skip or rewind"
                    )
                case "rewind":
                    log.warning("%s; its batch is in %s", bad, path)
                    raise RewindError(bad)
            log.warning("%s; its update is left out, its batch is in %s", bad, path)

    def _rewind(self, bad: BadStep) -> int:
        """Back to the last regular checkpoint before the bad step, with the data after it; the checkpoint's step."""
        self.saver.wait()
        folder, counted = self.saver.folder, self.state.bad_steps
        loaded = folder.load_before(bad.step, every=self.checkpoint_interval, first=self.state.first_step)
        if loaded is None:
            raise DivergedError(f"{bad}, and there is no checkpoint to go back to")
        step: int = loaded.state["train"]["step"]
        folder.discard_after(step)
        vars(self.state).update(vars(train_state(loaded)), seconds=self._seconds())
        self.snapshot.restore(loaded)
        self.state.samples = bad.first_sample + self.step_samples
        self.state.bad_steps = counted
        self.logger.rewind(step if self.state.pending is None else step - 1)
        log.warning("back to step %d; the data up to sample %d is left out", step, self.state.samples)
        return step

    def _seconds(self) -> float:
        """Training, evaluating and saving so far, over all resumes."""
        return time.perf_counter() - self._started

    def _train_metrics(self, loss: Tensor, grad_norm: Tensor) -> Metrics:
        self.state.train_loss = loss.item()  # waits for the device: only here, where the step is logged
        seconds = self.clock.lap(self.state.step)
        tokens = self.step_samples * self.train_loader.block_size
        metrics = {
            "train/loss": self.state.train_loss,
            "lr": self.optimizer.param_groups[0]["lr"],
            "grad_norm": grad_norm.item(),
            "tokens_per_second": tokens / seconds,
            "step_time_ms": 1000 * seconds,
            "memory_gb": self.system.memory_gb(),
        }
        if self.state.bad_steps:
            metrics["bad_steps"] = self.state.bad_steps
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
