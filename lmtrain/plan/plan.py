"""Holds everything that `plan` finds out about a run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmtrain.optimizer.group_table import GroupRow
from lmtrain.plan.facts import RunFacts
from lmtrain.plan.hardware import GpuEstimate
from lmtrain.plan.memory import StepCost
from lmtrain.plan.world.plan import WorldPlan


@dataclass(frozen=True)
class Measured:
    """A measurement of real steps on this machine; `peak_bytes` is measured by `System.memory_gb`."""

    step_seconds: float
    steps: int
    peak_bytes: int


@dataclass(frozen=True)
class Plan:
    """The plan of a run.

    `here` and `on_cuda` are the cost of a step on this machine and on CUDA in 16 bits; None if unknown.
    """

    name: str
    fork: str | None  # the run from whose checkpoint this one starts
    machine: str
    model: str
    parts: Mapping[str, int]
    groups: Sequence[GroupRow] | None  # None: unknown
    facts: RunFacts
    flops_per_token: float
    flops_from: str
    here: StepCost | None
    on_cuda: StepCost | None
    beside: Mapping[str, int]  # bytes that this machine needs in addition to the step's, by purpose
    no_memory: str | None  # the reason why the memory is unknown
    missing: Sequence[str]  # data without token files
    has_recipe: bool  # whether missing data can be prepared
    measured: Measured | None
    dollars_per_hour: float | None  # price of this machine
    checkpoints: int
    steps: Sequence[int]
    rates: Sequence[float]
    gpu_estimates: Sequence[GpuEstimate]
    mfu: float | None  # the requested one; None: estimated for each GPU
    remarks: Sequence[str]
    world: WorldPlan | None = None  # for a run of many processes, whose memory and time replace those of one

    @property
    def step_flops(self) -> float:
        """Return the FLOPs of the first step."""
        return self.flops_per_token * self.facts.step_tokens

    @property
    def run_flops(self) -> float:
        return self.flops_per_token * self.facts.tokens

    @property
    def dollars(self) -> float | None:
        """Return the cost of the run on this machine; None if its price or time is unknown."""
        if self.dollars_per_hour is None or self.facts.seconds is None:
            return None
        return self.dollars_per_hour * self.facts.seconds / 3600

    @property
    def cuda_step_flops(self) -> float | None:
        """Return a step's FLOPs on CUDA, including those that fused attention repeats; None if unknown."""
        if self.on_cuda is None:
            return None
        return self.on_cuda.micro_batch_flops * self.facts.step_tokens / self.facts.micro_batch_tokens

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON, with units in the keys."""
        facts = self.facts
        return {
            "name": self.name,
            "device": self.machine,
            "model": self.model,
            "steps": facts.steps,
            "fork": self.fork and {"run": self.fork, "step": facts.first_step, "tokens": facts.tokens_before},
            "parameters": {"total": facts.parameters, **self.parts},
            "parameter_groups": None if self.groups is None else [asdict(row) for row in self.groups],
            "tokens": {"step": facts.step_tokens, "run": facts.tokens, "per_parameter": facts.tokens_per_parameter},
            "epochs": dict(facts.epochs) or None,
            "missing_data": list(self.missing),
            "flops": {
                "per_token": self.flops_per_token,
                "step": self.step_flops,
                "run": self.run_flops,
                "from": self.flops_from,
                "step_on_cuda": self.cuda_step_flops,
            },
            "memory_bytes": {
                "here": _bytes_by_kind(self.here),
                "on_cuda": _bytes_by_kind(self.on_cuda),
                "beside": dict(self.beside),
                "needed": facts.memory_needed,
                "free": facts.memory_free,
                "unknown_as": self.no_memory,
            },
            "disk_bytes": {
                "checkpoint": facts.checkpoint_bytes,
                "from": "assuming the state of AdamW" if self.here is None else "a simulated step",
                "checkpoints": self.checkpoints,
                "needed": facts.disk_needed,
                "free": facts.disk_free,
            },
            "seconds": {"step": facts.step_seconds, "run": facts.seconds},
            "dollars": self.dollars,
            "measured": asdict(self.measured) if self.measured else None,
            "gpu_models": [
                {
                    **asdict(estimate.gpu),
                    "fits": estimate.fits,
                    "seconds": estimate.seconds,
                    "dollars": estimate.dollars,
                    "bound_by": estimate.bound_by,
                    "mfu": estimate.mfu,
                }
                for estimate in self.gpu_estimates
            ],
            "assumed_mfu": self.mfu,
            "processes": self.world.to_dict() if self.world else None,
            "lr": [list(point) for point in zip(self.steps, self.rates, strict=True)],
            "remarks": list(self.remarks),
        }


def _bytes_by_kind(step: StepCost | None) -> dict[str, int] | None:
    return {**step.peak, "peak": step.step_bytes, "evaluation": step.evaluation_bytes} if step else None
