"""Collects the facts about a planned run on which remarks are based; None means unknown or not applicable."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmtrain.checkpoint.fork import check_steps_left, forked_state, load_fork_origin
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.batch_size import SCHEDULES, batch_sizes
from lmtrain.loop.step_sizes import BatchSizes


@dataclass(frozen=True)
class PointsFacts:
    """The points of a schedule of the trainer, in tokens or finished steps, and where the run ends."""

    key: str
    first: int
    last: int
    end: int
    in_tokens: bool


@dataclass(frozen=True)
class ScheduleFacts:
    """The learning-rate schedule in the config, and the schedules of the trainer."""

    max_steps: int  # steps of the run
    schedule_steps: int | None = None  # the step at which the schedule ends
    warmup_steps: int | None = None
    lr: float | None = None
    min_lr: float | None = None
    first_step: int = 0  # steps done earlier, by the parent of a fork or before a resume
    is_adamw: bool = True  # usual learning rates are known only for AdamW
    points: Sequence[PointsFacts] = ()
    averages: bool = False  # the optimizer averages the weights, which replaces a decay of the learning rate
    decays: bool = True  # the schedule comes down before it ends
    decay_steps: int | None = None  # the length of its decay, if that has a key

    @classmethod
    def of(cls, cfg: Mapping[str, Any], first_step: int = 0) -> "ScheduleFacts":
        """Return the facts in a config; a user's scheduler is understood if it has the keys of the shipped ones."""
        scheduler, max_steps = cfg["scheduler"], cfg["trainer"]["max_steps"]
        found = {key: scheduler.get(key) for key in ("warmup_steps", "lr", "min_lr")}
        optimizer = cfg["optimizer"]["_target_"].lower()
        schedules = []
        for key, unit in SCHEDULES.items():
            if points := cfg["trainer"].get(key.removeprefix("trainer.")):
                end = max_steps if unit == "step" else batch_sizes(cfg).tokens(max_steps)
                schedules.append(PointsFacts(key, points[0][0], points[-1][0], end, in_tokens=unit == "tokens"))
        return cls(
            max_steps,
            scheduler.get("max_steps"),
            **found,
            first_step=first_step,
            is_adamw="adamw" in optimizer,
            averages="schedule_free" in optimizer,
            decays=scheduler.get("max_steps") is not None and scheduler.get("decay_steps") != 0,
            decay_steps=scheduler.get("decay_steps"),
            points=schedules,
        )


@dataclass(frozen=True)
class Intervals:
    """Steps between evaluations, logged lines and checkpoints; `eval_tokens` None means the whole split."""

    evaluation: int | None = None
    log: int | None = None
    checkpoint: int | None = None
    eval_tokens: int | None = None

    @classmethod
    def of(cls, trainer: Mapping[str, Any], micro_batch_tokens: int) -> "Intervals":
        """Return the intervals in the config of a trainer; a user's trainer may lack some of the keys."""
        batches = trainer.get("eval_batches")
        limits = [trainer.get("eval_tokens"), None if batches is None else batches * micro_batch_tokens]
        return cls(
            evaluation=trainer.get("eval_interval"),
            log=trainer.get("log_interval"),
            checkpoint=trainer.get("checkpoint_interval"),
            eval_tokens=min((limit for limit in limits if limit is not None), default=None),
        )


@dataclass(frozen=True)
class RunFacts:
    """Everything that is known about a run before it starts."""

    schedule: ScheduleFacts
    intervals: Intervals
    parameters: int
    step_tokens: int  # of the first step, if `batch_sizes` is given
    micro_batch_tokens: int
    block_size: int
    device: str  # cpu or cuda
    dtype: str
    tokens_before: int = 0  # tokens on which the parent of a fork was trained
    epochs: Mapping[str, float] = field(default_factory=dict)  # by source, with those of a parent; empty: unknown
    steps_per_epoch: float | None = None
    val_tokens: int | None = None
    step_seconds: float | None = None  # a mean over the run
    checkpoint_bytes: int | None = None
    disk_needed: int | None = None  # bytes
    disk_free: int | None = None
    memory_needed: int | None = None
    memory_free: int | None = None
    activations: int | None = None  # bytes of them at the peak of memory
    recompute: str | None = None  # None if the model has no such setting
    batch_size: int | None = None
    vocab_size: int | None = None
    d_model: int | None = None
    n_head: int | None = None
    model_block_size: int | None = None  # the model's own block_size
    learned_positions: bool = False
    speed_to_float32: float | None = None  # speed of matrix products in the run's dtype on this CPU, over float32
    idle_gpu: bool = False
    batch_sizes: BatchSizes | None = None  # None: every step has `step_tokens`

    @property
    def max_steps(self) -> int:
        return self.schedule.max_steps

    @property
    def first_step(self) -> int:
        return self.schedule.first_step

    @property
    def steps(self) -> int:
        """Return the number of steps that the run itself does; for a fork, those after its checkpoint."""
        return self.max_steps - self.first_step

    @property
    def tokens(self) -> int:
        if self.batch_sizes is None:
            return self.steps * self.step_tokens
        return self.batch_sizes.tokens(self.steps, self.tokens_before)

    @property
    def range_of_step_tokens(self) -> tuple[int, int]:
        """Return the smallest and the largest number of tokens in a step."""
        if self.batch_sizes is None:
            return self.step_tokens, self.step_tokens
        return self.batch_sizes.range(self.steps, self.tokens_before)

    @property
    def mean_step_tokens(self) -> float:
        return self.tokens / self.steps

    def steps_for(self, tokens: float) -> float:
        """Return how many steps so many tokens are, from the beginning of the run."""
        if self.batch_sizes is None:
            return tokens / self.step_tokens
        return self.batch_sizes.steps(int(tokens), self.tokens_before)

    @property
    def tokens_per_parameter(self) -> float:
        """Return the tokens per parameter at the end of the run, including those of a fork's parent."""
        return (self.tokens_before + self.tokens) / max(self.parameters, 1)

    @property
    def seconds(self) -> float | None:
        return None if self.step_seconds is None else self.step_seconds * self.steps


def checkpoints_kept(trainer: Any, facts: RunFacts) -> int:
    """Return the largest number of checkpoints on disk, including the best one and one that is being written."""

    def made(every: int | None) -> int:
        return facts.max_steps // every - facts.first_step // every if every else 0

    # The last step is always saved.
    all_of_them = made(facts.intervals.checkpoint) + made(facts.intervals.evaluation) + 1
    kept = trainer.get("keep_checkpoints", 1) + 1 + made(trainer.get("keep_every"))
    return int(min(kept, all_of_them) + 1)


def start_of(cfg: Any) -> TrainState:
    """Verify the checkpoint of a fork and return the state in which the fork starts; zeros for a new run.

    Raises:
        ValueError: there is no such checkpoint, or it leaves no steps to do.
    """
    if not cfg.get("fork"):
        return TrainState()
    check_steps_left(origin := load_fork_origin(Path(cfg.fork), cfg.step), cfg.trainer.max_steps)
    state = forked_state(origin)
    if not _continues_data(origin.checkpoint.state["config"], OmegaConf.to_container(cfg)):
        state.samples = 0
    return state


def _continues_data(then: Mapping[str, Any], now: Any) -> bool:
    """Return whether a fork continues in its parent's data, judging by the configs; `begin_fork` checks the files."""
    settings = [{**config["data"], "batch_size": None} for config in (then, now)]
    return bool(then["seed"] == now["seed"] and settings[0] == settings[1])


Remark = Callable[[RunFacts], str | None]
