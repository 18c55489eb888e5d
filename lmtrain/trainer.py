"""The training loop: micro-batches, backward, clip, step; evaluation, logging and checkpoints around it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn

from lmtrain.checkpoint.run_checkpoints import RunCheckpoints
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.snapshot import Snapshot, TrainState
from lmtrain.data.prefetch import Prefetcher
from lmtrain.errors import DataError, DivergedError
from lmtrain.logger.base import RunLogger
from lmtrain.loop import policies
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.bad_steps import BadStep, BadStepMonitor, SpikeDetector
from lmtrain.loop.evaluation import Evaluator
from lmtrain.loop.step_clock import StepClock
from lmtrain.loop.stop_request import StopRequest
from lmtrain.loop.training_parts import Parts
from lmtrain.loop.update import update
from lmtrain.model.flops import flops_per_token

STOP_FILE_STEPS = 10  # between looks for a request to be pruned; on a network file system each may take a millisecond

Metrics = dict[str, float]


@dataclass(frozen=True)
class Recorder:
    """What records a run, and may ask it to stop.

    `identity` is what every checkpoint says of the run: its id, config and environment.
    """

    logger: RunLogger
    saver: Saver
    bad_batches: BadBatches
    stop: StopRequest = field(default_factory=StopRequest)
    identity: Mapping[str, Any] = field(default_factory=dict)


class Trainer:
    """Trains `parts.model` until `max_steps`: evaluates it, and has `recorder` log and save it.

    The gradient of a step is that of the mean loss over all target tokens of its `gradient_accumulation_steps`
    micro-batches together, however they are cut and however many targets each of them has. The learning rate of a
    parameter group is the schedule's times the group's `lr_scale`, if it has one.

    `grad_clip` is the largest global gradient norm (0: no limit); `eval_batches` limits an evaluation (null: the whole
    split); `eval_train_batches` of the training split are evaluated as well (0: none). The newest `keep_checkpoints`
    stay, those of every `keep_every` steps (null: none), and the best, which an evaluation that improves makes at once.

    A step whose loss or gradient norm is not finite, or a spike (more than `spike_zscore` robust standard deviations
    above the last `spike_window` good steps; null: no such check), is bad. That is decided on the device, and the
    update left out there; its batch is kept for a person to look at. Then the policy `on_bad_step` decides how the run
    goes on: see `loop/policies.py`.

    Raises:
        DataError: from `fit`, when token files turn out to be damaged; everything is saved.
        DivergedError: from `fit`, after a bad step.
        NonFiniteStateError: from `fit`, when the state to be saved has numbers that are not finite.
        InterruptedBySignal, PrunedError: from `fit`, when everything is saved.
    """

    def __init__(
        self,
        parts: Parts,
        recorder: Recorder,
        state: TrainState,
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
        self.system, self.train_loader = parts.system, parts.train_loader
        self.model, self.optimizer, self.schedule = parts.model, parts.optimizer, parts.schedule
        self.logger, self.saver, self.bad_batches = recorder.logger, recorder.saver, recorder.bad_batches
        self.stop, self.state = recorder.stop, state
        self.max_steps, self.gradient_accumulation_steps = max_steps, gradient_accumulation_steps
        self.step_samples = gradient_accumulation_steps * self.train_loader.batch_size
        self.grad_clip, self.on_bad_step = grad_clip or math.inf, policies.POLICIES[on_bad_step]
        self.eval_interval, self.log_interval = eval_interval, log_interval
        self.checkpoint_interval = checkpoint_interval
        self.forward = self.system.compile(self.model)
        self.scaler = self.system.scaler()
        self.evaluator = Evaluator(parts, self.forward, batches=eval_batches, train_batches=eval_train_batches)
        self.params = [param for param in self.model.parameters() if param.requires_grad]
        self.detector = SpikeDetector(
            spike_zscore, spike_window, self.system.device, ignore_norm=self.scaler.is_enabled()
        )
        self.monitor, self.clock = BadStepMonitor(spike_zscore), StepClock(state.step, state.seconds)
        self.snapshot = Snapshot(parts, self.scaler, self.detector, recorder.identity)
        self.checkpoints = RunCheckpoints(
            self.snapshot,
            self.saver,
            interval=checkpoint_interval,
            keep_newest=keep_checkpoints,
            keep_every=keep_every,
            keep_for_rewind=self.on_bad_step is policies.rewind,
        )

    def fit(self) -> None:
        """Run the steps that are left; `state` is that of the last one afterwards."""
        with self.saver:
            while True:
                try:
                    return self._run_steps()
                except policies.RewindError as error:
                    self._rewind(error.bad)
                    if self.state.rewinds > policies.MAX_REWINDS:
                        raise DivergedError(f"{error}, and {policies.MAX_REWINDS} rewinds did not help") from error
                except DataError:  # between two steps: the last one is whole, and must not be lost
                    if self.state.step:
                        self._save()
                    raise

    def _run_steps(self) -> None:
        state = self.state
        first_batch = state.samples // self.train_loader.batch_size
        self.monitor = BadStepMonitor(self.detector.zscore)
        self.model.train()
        with Prefetcher(self.train_loader.batch, first_batch, self.system.device) as self.micro_batches:
            self.clock = StepClock(state.step, state.seconds)
            if state.pending is not None:
                self._finish_step(state.pending, evaluates=True, saves=True)
            while state.step < self.max_steps:
                try:
                    loss, grad_norm = self.step()
                except DataError:
                    self._apply_policy(newest=True)  # to the step before, which has not been looked at yet
                    raise
                if not self.stop.defers:  # the first step of this process, before which there was nothing new to save
                    self.stop.defers = True
                    self.saver.reserve(self.snapshot.take(state))
                last = state.step == self.max_steps
                logs = state.step % self.log_interval == 0 or last or state.step == 1
                evaluates = state.step % self.eval_interval == 0 or last
                # Looked at once, as a signal may come at any moment: what stops the run also saves it.
                request = self.stop.asked(looks=logs or evaluates or state.step % STOP_FILE_STEPS == 0)
                saves = state.step % self.checkpoint_interval == 0 or last or request is not None
                self.saver.check()
                self._apply_policy(newest=logs or evaluates or saves)
                metrics = self._train_metrics(loss, grad_norm) if logs else {}
                if evaluates or saves:
                    self.system.synchronize()  # what the device still has to do belongs to the steps
                self._finish_step(metrics, evaluates=evaluates, saves=saves)
                if request is not None and not last:
                    self.saver.wait()  # else its error would come too late to count
                    raise request

    def step(self) -> tuple[Tensor, Tensor]:
        """Do one optimizer step; return its loss (nats a token) and gradient norm, for which nobody has waited yet."""
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
        self.monitor.record(self.state.step, self.state.samples, total, grad_norm, verdict, losses)
        self.state.samples += self.step_samples
        self.state.tokens += targets
        return total, grad_norm

    def _finish_step(self, metrics: Metrics, *, evaluates: bool, saves: bool) -> None:
        """Do what comes after the update: an evaluation, a line in the log, a checkpoint."""
        state = self.state
        with self.clock.paused():
            if evaluates:
                metrics = self._evaluated(metrics)
            if metrics:
                state.seconds = self.clock.run_seconds()
                axes = {"tokens": state.tokens, "seconds": state.seconds}  # what curves are drawn over
                self.logger.log(state.step, metrics | axes)
            if evaluates and not math.isfinite(state.val_loss or 0.0) and self.on_bad_step is policies.stop:
                raise DivergedError(f"the validation loss of step {state.step} is {state.val_loss}")
            if saves or state.best_step == state.step:  # the best model is worth a checkpoint
                self._save()

    def _evaluated(self, metrics: Metrics) -> Metrics:
        """Return the metrics with those of an evaluation.

        If that is cut short, the step is saved without, and evaluated when the run goes on.
        """
        generators = self.system.generator_state()
        try:
            with self.stop.at_once():
                evaluated = self.evaluator.metrics()
        except BaseException:  # a signal, no memory, damaged data: the step itself is whole
            self.system.load_generator_state(generators)
            self.state.pending = metrics
            self._save()
            self.saver.wait()
            raise
        self.state.pending = None
        self.state.count_val_loss(evaluated["val/loss"])
        return metrics | evaluated

    def _save(self) -> None:
        self.state.seconds = self.clock.run_seconds()
        self.checkpoints.save(self.state)

    def _apply_policy(self, *, newest: bool) -> None:
        """Apply the policy to the bad steps that the device has reported by now; `newest` waits for the last step."""
        for bad in self.monitor.bad_steps(newest=newest):
            batch_file = self.bad_batches.keep(bad)
            self.state.count_bad_step(bad.step)
            if self.state.bad_in_a_row > policies.MAX_BAD_STEPS_IN_A_ROW:
                raise DivergedError(f"{bad}, as were the {policies.MAX_BAD_STEPS_IN_A_ROW} steps before it")
            self.on_bad_step(bad, batch_file)

    def _rewind(self, bad: BadStep) -> None:
        self.checkpoints.rewind(self.state, bad, self.step_samples)
        self.state.seconds = self.clock.run_seconds()  # the way back counts, too
        self.logger.rewind(self.state.logged_step)

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
