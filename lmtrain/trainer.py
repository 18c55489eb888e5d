"""The training loop. `Trainer.step` is one optimizer step; `Trainer.fit` evaluates, logs and saves around it."""

import math
from contextlib import nullcontext
from typing import Annotated, Literal

from annotated_types import Interval
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from lmtrain.checkpoint.recorder import Recorder
from lmtrain.checkpoint.run_checkpoints import RunCheckpoints
from lmtrain.checkpoint.snapshot import Snapshot, TrainState
from lmtrain.data.prefetch import MicroBatch, Prefetcher
from lmtrain.errors import DataError, DivergedError, InterruptedBySignal
from lmtrain.evaluate.while_training import TrainingTasks
from lmtrain.loop import policies
from lmtrain.loop.bad_steps import BadStep, BadStepMonitor, SpikeDetector
from lmtrain.loop.evaluation import Evaluator, sequences_to_evaluate
from lmtrain.loop.evaluation_weights import evaluation_weights
from lmtrain.loop.garbage import GarbageCollection
from lmtrain.loop.gradients import compute_gradients, n_targets
from lmtrain.loop.rank_times import RankTimes
from lmtrain.loop.schedules import Schedules
from lmtrain.loop.step_clock import StepClock
from lmtrain.loop.step_sizes import TokenPoints
from lmtrain.loop.train_metrics import Metrics, Speed, train_metrics
from lmtrain.loop.training_parts import Parts
from lmtrain.loop.update import unscale, update, updated_modules
from lmtrain.sample.while_training import TrainingSamples
from lmtrain.scheduler import Shares

PRUNE_CHECK_STEPS = 10  # steps between checks for a prune request: on a network file system, one can take a millisecond


class Trainer:
    """Trains a model, evaluates it regularly, and logs and saves the run.

    The loss of a step is the mean over all target tokens of its micro-batches, however the step is split. The learning
    rate of a parameter group is the schedule's learning rate times the group's `lr_scale`, which is 1 by default.

    A step is bad if its loss or gradient norm is not finite, or is a spike. The device skips its update, its batch is
    saved, and the policy `on_bad_step` decides how the run continues (see `loop/policies.py`).

    Args:
        parts: Data loaders, model, optimizer and schedule.
        recorder: Logger, checkpoint saver and stop request.
        state: Where the run starts: a new state, or the state of a checkpoint.
        max_steps: Optimizer steps of the whole run.
        gradient_accumulation_steps: Micro-batches per optimizer step.
        global_batch_size: Sequences per optimizer step; null means that many micro-batches. With it, the number of
            micro-batches follows from `data.batch_size`, which may also be `auto`.
        batch_schedule: Pairs of tokens and the sequences per optimizer step from there on; before the first, the two
            values above hold. A step has the size that holds at its start. The order of the data stays the same.
        length_schedule: Pairs of tokens and the tokens per sequence from there on; before, it is `data.block_size`.
            Shorter sequences are pieces of the same samples. Evaluations use the whole length.
        weight_decay_schedule: Pairs of finished steps and the share of the weight decay after them; linear between.
        momentum_schedule: The same for the optimizer's `momentum` or, without one, for the first of its `betas`.
        grad_clip: Largest global gradient norm; larger gradients are scaled down to it. 0 means no clipping.
        on_bad_step: Policy for bad steps. `stop` ends the run, `skip` continues with the next step, and `rewind` goes
            back to the last regular checkpoint and continues with the data after the bad step.
        spike_zscore: A loss or gradient norm is a spike if it is so many robust standard deviations above the median of
            recent good steps; null turns this check off.
        spike_window: Number of recent good steps that a step is compared with.
        ema_decay: Share of a moving average of the weights that a step keeps; evaluations use it. null means none.
        eval_interval: Steps between evaluations on the validation split.
        eval_tokens: Validation tokens per evaluation, evenly spaced over the split; null means no limit.
        eval_batches: Batches per evaluation at most; null means no limit. Without both limits, it is the whole split.
        eval_train_batches: Batches of the training split to evaluate as well, as `train_eval/loss`; 0 means none.
        eval_tasks: Tasks of the EleutherAI harness that each evaluation runs as well; null means none.
        eval_tasks_folder: The folder with their files.
        eval_tasks_limit: The first questions of each task only; null means all.
        sample_interval: Steps between texts that the model writes, see `samples.jsonl`; null means none.
        sample_prompts: The texts that it continues, always with the same random numbers; null begins a document.
        sample_new_tokens: Tokens of each text at most.
        log_interval: Steps between lines of `metrics.jsonl`.
        checkpoint_interval: Steps between checkpoints; one is also saved at each new best validation loss and the end.
        keep_checkpoints: Number of newest checkpoints to keep. The best one is always kept.
        keep_every: Also keep every checkpoint whose step is a multiple of this; null means none.

    Raises:
        DataError: `fit` found damaged token files, or a batch without targets; the run is saved.
        DivergedError: bad steps ended `fit`, or the validation loss is not finite.
        NonFiniteStateError: `fit` refused to save numbers that are not finite.
        InterruptedBySignal, PrunedError: `fit` was asked to stop; the run is saved.
    """

    def __init__(
        self,
        parts: Parts,
        recorder: Recorder,
        state: TrainState,
        *,
        max_steps: PositiveInt,
        gradient_accumulation_steps: PositiveInt,
        global_batch_size: PositiveInt | None = None,
        batch_schedule: TokenPoints | None = None,
        length_schedule: TokenPoints | None = None,
        weight_decay_schedule: Shares | None = None,
        momentum_schedule: Shares | None = None,
        grad_clip: NonNegativeFloat,
        on_bad_step: Literal["stop", "skip", "rewind"],
        spike_zscore: PositiveFloat | None,
        spike_window: PositiveInt,
        ema_decay: Annotated[float, Interval(gt=0, lt=1)] | None = None,
        eval_interval: PositiveInt,
        eval_batches: PositiveInt | None,
        eval_tokens: PositiveInt | None = None,
        eval_train_batches: NonNegativeInt,
        eval_tasks: list[str] | None = None,
        eval_tasks_folder: str | None = None,
        eval_tasks_limit: PositiveInt | None = None,
        sample_interval: PositiveInt | None = None,
        sample_prompts: list[str] | None = None,
        sample_new_tokens: PositiveInt = 64,
        log_interval: PositiveInt,
        checkpoint_interval: PositiveInt,
        keep_checkpoints: PositiveInt,
        keep_every: PositiveInt | None,
    ) -> None:
        self.parts, self.system, self.parallel = parts, parts.system, parts.parallel
        self.train_loader, self.model, self.optimizer = parts.train_loader, parts.model, parts.optimizer
        self.logger, self.saver, self.bad_batches = recorder.logger, recorder.saver, recorder.bad_batches
        self.stop, self.state, self.max_steps = recorder.stop, state, max_steps
        # `config` derives the number of micro-batches.
        assert global_batch_size in (None, gradient_accumulation_steps * parts.train_loader.batch_size)
        by_tokens, by_step = (batch_schedule, length_schedule), (weight_decay_schedule, momentum_schedule)
        self.schedules = Schedules(parts, gradient_accumulation_steps, *by_tokens, *by_step)
        self.grad_clip, self.on_bad_step = grad_clip or math.inf, policies.POLICIES[on_bad_step]
        self.eval_interval, self.log_interval = eval_interval, log_interval
        self.checkpoint_interval, self.sample_interval = checkpoint_interval, sample_interval
        fixed = self.schedules.changes_length
        self.forward = self.system.compile(self.model, fixed_shapes=fixed, wrap=self.parallel.wrap)
        self.scaler = self.system.scaler()
        self.tasks = TrainingTasks(parts, recorder.tokenizer, eval_tasks or [], eval_tasks_folder, eval_tasks_limit)
        self.evaluator = Evaluator(
            parts,
            self.forward,
            sequences=sequences_to_evaluate(parts.val_loader, eval_batches, eval_tokens),
            train_sequences=eval_train_batches * parts.train_loader.batch_size,
            request=lambda: self.stop.requested(check_file=False),
            tasks=self.tasks.metrics,
        )
        self.garbage, self.times = GarbageCollection(), RankTimes(self.parallel, self.system.device)
        self.params = [param for param in parts.updated.values() if param.requires_grad]
        self.updated_modules = updated_modules(self.model)
        scaled = self.scaler.is_enabled()
        self.detector = SpikeDetector(spike_zscore, spike_window, self.system.device, ignore_norm=scaled)
        self.monitor, self.clock = BadStepMonitor(spike_zscore), StepClock(state.step, state.samples, state.seconds)
        self.evaluation_weights = evaluation_weights(self.parallel.own(self.model), self.optimizer, ema_decay)
        self.samples = TrainingSamples(parts, recorder.tokenizer, sample_prompts, sample_new_tokens)
        self.snapshot = Snapshot(parts, self.scaler, self.detector, self.evaluation_weights, recorder.identity)
        self.checkpoints = RunCheckpoints(
            self.snapshot,
            self.saver,
            interval=checkpoint_interval,
            keep_newest=keep_checkpoints,
            keep_every=keep_every,
            keep_for_rewind=self.on_bad_step is policies.rewind,
        )

    def fit(self) -> None:
        """Run the remaining steps and update `state` as they finish."""
        with self.saver:
            while True:
                try:
                    return self._run_steps()
                except policies.RewindError as error:
                    self._rewind(error.bad)
                    if self.state.rewinds > policies.MAX_REWINDS:
                        raise DivergedError(f"{error}, and {policies.MAX_REWINDS} rewinds did not help") from error
                except DataError:  # raised between two steps: the last one is complete and must not be lost
                    if self.state.step:
                        self._save()
                    raise

    def _run_steps(self) -> None:
        state, loader, world = self.state, self.train_loader, self.parallel.world
        first = state.samples // loader.batch_size + world.rank
        self.monitor = BadStepMonitor(self.detector.zscore)
        self.model.train()
        prefetcher = Prefetcher(loader.batch, first, self.system.device, stride=world.size)
        with self.garbage, prefetcher as self.micro_batches:
            self.clock = StepClock(state.step, state.samples, state.seconds)
            if state.pending is not None:
                self._finish_step(state.pending, evaluate=True, save=True)
            while state.step < self.max_steps:
                try:
                    loss, grad_norm = self.step()
                except DataError:
                    self._apply_policy(newest=True)  # the step before has not been checked yet
                    raise
                if not self.saver.reserved:  # the first step of this process: until now there was nothing new to save
                    self.stop.defers = True
                    self.saver.reserve(self.snapshot.take(state))
                last = state.step == self.max_steps
                log = state.step % self.log_interval == 0 or last or state.step == 1
                evaluate = state.step % self.eval_interval == 0 or last
                # Read once per step, since a signal can arrive at any moment: a request that stops the run also saves.
                check_file = log or evaluate or state.step % PRUNE_CHECK_STEPS == 0
                request = self.parallel.agreed(self.stop.requested(check_file=check_file))
                save = state.step % self.checkpoint_interval == 0 or last or request is not None
                self.saver.check()
                self._apply_policy(newest=log or evaluate or save)
                metrics = self._train_metrics(loss, grad_norm) if log else {}
                if evaluate or save:
                    self.system.synchronize()  # work still queued on the device counts as time of the steps
                self._finish_step(metrics, evaluate=evaluate, save=save)
                self.garbage.after_step()
                if request is not None and not last:
                    self.saver.wait()  # a failed save must be reported instead of the request
                    raise request

    def step(self) -> tuple[Tensor, Tensor]:
        """Do one optimizer step; return its loss (nats per token) and gradient norm without waiting for the device."""
        step, tokens = self.state.step, self.state.tokens
        self.schedules.set_learning_rate(step)
        count = self.schedules.micro_batches(tokens)
        micro_batches, targets = self.parallel.load(lambda: self._load(count // self.parallel.world.size), n_targets)
        if not targets:
            raise DataError(f"{self.train_loader.path}: the batch of step {step + 1} has no targets")
        total, losses = compute_gradients(self.forward, micro_batches, targets, self.parts, self.scaler, self.times)
        unscale(self.scaler, self.optimizer, self.parallel)
        grad_norm = self.parallel.clip(self.params, self.grad_clip)
        verdict = self.detector.judge(total, grad_norm)
        with self.schedules.values(step), self.parallel.collectives():
            skipped = update(self.optimizer, self.scaler, verdict.bad, self.updated_modules)
            self.parallel.weights_ready()
        self.evaluation_weights.after_update(step, skipped)
        self.system.zero_gradients(self.optimizer)
        self.state.step += 1
        self.monitor.record(self.state.step, self.state.samples, total, grad_norm, verdict, losses)
        self.state.samples += count * self.train_loader.batch_size
        self.state.tokens += targets
        return total, grad_norm

    def _load(self, count: int) -> list[MicroBatch]:
        """Return this process's micro-batches of the next step, with sequences of the scheduled length."""
        with self.times.loading():
            return [self.schedules.cut(next(self.micro_batches), self.state.tokens) for _ in range(count)]

    def _finish_step(self, metrics: Metrics, *, evaluate: bool, save: bool) -> None:
        """Evaluate, log and save after the update of a step."""
        state = self.state
        with self.clock.paused(), self.garbage.as_usual():
            if evaluate:
                metrics = self._add_evaluation(metrics)
            if metrics:
                state.seconds = self.clock.run_seconds()
                self.logger.log(state.step, metrics | {"tokens": state.tokens, "seconds": state.seconds})
            if self.sample_interval and (state.step % self.sample_interval == 0 or state.step == self.max_steps):
                with self.evaluation_weights.in_use():
                    self.logger.log_samples(state.step, self.samples.take())
            if evaluate and not math.isfinite(state.val_loss or 0.0) and self.on_bad_step is policies.stop:
                raise DivergedError(f"the validation loss of step {state.step} is {state.val_loss}")
            if save or state.best_step == state.step:  # the best model is saved at once
                self._save()

    def _add_evaluation(self, metrics: Metrics) -> Metrics:
        """Evaluate the model and return its metrics together with the given ones.

        If it is interrupted, in several processes between two batches, the step is saved, and a resume evaluates first.
        """
        generators, alone = self.system.generator_state(), self.parallel.world.size == 1
        try:
            with self.evaluation_weights.in_use(), self.stop.at_once() if alone else nullcontext():
                evaluated = self.evaluator.metrics()
        except BaseException as error:  # a signal, no memory, damaged data: the step itself is complete
            if not alone and not isinstance(error, (DataError, InterruptedBySignal)):  # the others would not save
                raise
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
        """Apply the policy to the bad steps that the device has reported; `newest` also waits for the last step."""
        count = self.state.count_bad_step
        policies.apply(self.on_bad_step, self.monitor.bad_steps(newest=newest), self.bad_batches, count)

    def _rewind(self, bad: BadStep) -> None:
        self.checkpoints.rewind(self.state, bad, len(bad.micro_batch_losses) * self.train_loader.batch_size)
        self.state.seconds = self.clock.run_seconds()  # a rewind also takes time
        self.logger.rewind(self.state.logged_step)

    def _train_metrics(self, loss: Tensor, grad_norm: Tensor) -> Metrics:
        seconds, samples = self.clock.lap(self.state.step, self.state.samples)
        speed = Speed(seconds, samples * self.train_loader.block_size, self.schedules.length(self.state.tokens))
        lr = self.schedules.learning_rate(self.state.step - 1)
        metrics = train_metrics(loss, grad_norm, lr, self.system, self.model, speed) | self.times.metrics()
        self.state.train_loss = metrics["train/loss"]
        return metrics | ({"bad_steps": self.state.bad_steps} if self.state.bad_steps else {})
