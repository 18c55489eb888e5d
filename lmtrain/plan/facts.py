"""What is known of a run before it starts, for remarks about it. None means: not known, or without meaning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ScheduleFacts:
    """The learning rate's schedule, as the config has it."""

    max_steps: int  # the run's
    schedule_steps: int | None = None  # where the schedule itself ends
    warmup_steps: int | None = None
    lr: float | None = None
    min_lr: float | None = None
    first_step: int = 0  # steps that were done before: those of a fork's origin, or of the run that goes on
    is_adamw: bool = True  # the optimizer, for which rates are usual or not

    @classmethod
    def of(cls, cfg: Mapping[str, Any], first_step: int = 0) -> "ScheduleFacts":
        """Return the facts of a config, whose scheduler may be a user's; the keys are those of the shipped ones."""
        scheduler, max_steps = cfg["scheduler"], cfg["trainer"]["max_steps"]
        found = {key: scheduler.get(key) for key in ("warmup_steps", "lr", "min_lr")}
        is_adamw = "adamw" in cfg["optimizer"]["_target_"].lower()
        return cls(max_steps, scheduler.get("max_steps"), **found, first_step=first_step, is_adamw=is_adamw)


@dataclass(frozen=True)
class Intervals:
    """Steps between evaluations, lines and checkpoints; batches of an evaluation (None: the whole split)."""

    evaluation: int | None = None
    log: int | None = None
    checkpoint: int | None = None
    eval_batches: int | None = None


@dataclass(frozen=True)
class RunFacts:
    schedule: ScheduleFacts
    intervals: Intervals
    parameters: int
    step_tokens: int
    micro_batch_tokens: int
    block_size: int
    device: str  # cpu or cuda
    dtype: str
    tokens_before: int = 0  # that a fork's origin was trained on
    epochs: Mapping[str, float] = field(default_factory=dict)  # by source, with the origin's; empty: unknown
    steps_per_epoch: float | None = None
    val_tokens: int | None = None
    step_seconds: float | None = None
    checkpoint_bytes: int | None = None
    disk_needed: int | None = None  # bytes
    disk_free: int | None = None
    memory_needed: int | None = None
    memory_free: int | None = None
    batch_size: int | None = None
    vocab_size: int | None = None
    d_model: int | None = None
    n_head: int | None = None
    model_block_size: int | None = None  # the model's own block_size
    learned_positions: bool = False
    speed_to_float32: float | None = None  # of matrix products in the run's dtype on this CPU
    idle_gpu: bool = False

    @property
    def max_steps(self) -> int:
        return self.schedule.max_steps

    @property
    def first_step(self) -> int:
        return self.schedule.first_step

    @property
    def steps(self) -> int:
        """Return the steps that the run itself does: of a fork, those after its origin's."""
        return self.max_steps - self.first_step

    @property
    def tokens(self) -> int:
        return self.steps * self.step_tokens

    @property
    def tokens_per_parameter(self) -> float:
        """Return the tokens per parameter at the end of the run, those of a fork's origin included."""
        return (self.tokens_before + self.tokens) / max(self.parameters, 1)

    @property
    def seconds(self) -> float | None:
        return None if self.step_seconds is None else self.step_seconds * self.steps


Remark = Callable[[RunFacts], str | None]
