"""What is known of a run before it starts: what remarks are made of. None is what is not known, or has no meaning."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Schedule:
    """The learning rate's plan, as the config has it."""

    max_steps: int  # the run's
    schedule_steps: int | None = None  # where the schedule itself ends
    warmup_steps: int | None = None
    lr: float | None = None
    min_lr: float | None = None

    @classmethod
    def of(cls, scheduler: Mapping[str, Any], max_steps: int) -> "Schedule":
        """From the config's node of the scheduler, whoever wrote it; the keys are those of the shipped ones."""
        return cls(max_steps, *(scheduler.get(key) for key in ("max_steps", "warmup_steps", "lr", "min_lr")))


@dataclass(frozen=True)
class Intervals:
    """Steps between evaluations, lines and checkpoints; batches of an evaluation (None: the whole split)."""

    evaluation: int | None = None
    log: int | None = None
    checkpoint: int | None = None
    eval_batches: int | None = None


@dataclass(frozen=True)
class Facts:
    schedule: Schedule
    intervals: Intervals
    parameters: int
    step_tokens: int
    micro_batch_tokens: int
    block_size: int
    device: str  # cpu or cuda
    dtype: str
    epochs: Mapping[str, float] = field(default_factory=dict)  # by source; empty: unknown
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
    longest: int | None = None  # the model's own block_size
    learned_positions: bool = False
    speed_to_float32: float | None = None  # of matrix products in the run's dtype on this CPU
    idle_gpu: bool = False

    @property
    def max_steps(self) -> int:
        return self.schedule.max_steps

    @property
    def tokens(self) -> int:
        return self.max_steps * self.step_tokens

    @property
    def tokens_per_parameter(self) -> float:
        return self.tokens / max(self.parameters, 1)

    @property
    def seconds(self) -> float | None:
        return None if self.step_seconds is None else self.step_seconds * self.max_steps


Remark = Callable[[Facts], str | None]
