"""The numbers that a benchmark of a step finds, and what follows from them."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmtrain.benchmark.step.floor import ProductRate
from lmtrain.benchmark.step.timeline import CLIP, LOGGING, OPTIMIZER
from lmtrain.benchmark.turns import median, ratio

STEP, FLOOR, PRODUCTS, ATTENTION, FAST = "step", "floor", "products", "attention", "not_deterministic"
ONCE_PER_STEP = (CLIP, OPTIMIZER, LOGGING)


@dataclass(frozen=True)
class StepWork:
    """The work of a run's step.

    Attributes:
        model: The name of the model's class.
        parameters: The number of parameters.
        batch_size: Sequences per micro-batch.
        block_size: Tokens per sequence.
        accumulation: Micro-batches per step in the config.
        flops_per_token: FLOPs of forward and backward; None if they can't be counted.
        other_bytes: Bytes that all other operations of a micro-batch read and write in eager mode; None if unknown.
        log_interval: Steps between two lines of metrics.
        has_real_data: False if the benchmark trains on random tokens.
        gains_in_16_bits: Whether a step can be faster in 16 bits; on a CPU, a narrow model loses more time by casts.
    """

    model: str
    parameters: int
    batch_size: int
    block_size: int
    accumulation: int
    flops_per_token: float | None
    other_bytes: float | None
    log_interval: int
    has_real_data: bool
    gains_in_16_bits: bool = True

    @property
    def micro_batch_tokens(self) -> int:
        return self.batch_size * self.block_size


@dataclass(frozen=True)
class Machine:
    """The machine, the way in which the run uses it, and its limits.

    Attributes:
        device: The device, as text.
        device_type: `cpu` or `cuda`.
        dtype: The number format of the run.
        compiles: Whether the model is compiled.
        automatic: The keys of the config, such as `system.dtype`, whose value was chosen for this run.
        known_peak: FLOP/s from the data sheet of the GPU; None if unknown.
        large_product: FLOP/s in the run's number format of the fastest product here: large square ones, and those of
            the model.
        other_products: FLOP/s of the same products in other number formats that the device has.
        bandwidth: Bytes per second of a large copy in memory.
    """

    device: str
    device_type: str
    dtype: str
    compiles: bool
    automatic: Sequence[str]
    known_peak: float | None
    large_product: float
    other_products: Mapping[str, float]
    bandwidth: float


@dataclass
class Findings:
    """All that was measured; seconds, bytes and FLOP/s unless the name says otherwise.

    Attributes:
        work: The work of a step.
        machine: The machine and its limits; not set before the memory of the step is known.
        micro_batches: Micro-batches in a measured step.
        steps: Steps in a measurement; all times are per step.
        rounds: The seconds of the contenders in each round: `step`, and without everything else `products` and
            `attention`.
        phases: The seconds of each phase in each round, from a step with timers.
        rates: The speed of the products of each shape.
        has_attention: Whether the floor has fused attention.
        no_floor: The reason why there is no floor; None if there is one.
        startup: The seconds of each part of the start.
        memory: The peak memory in bytes: of the process, or on CUDA of the tensors.
        planned_memory: The same as `plan` predicts it; None if the step can't be simulated.
        checkpoint_stall: The seconds for which the loop waits for a checkpoint.
        checkpoint_seconds: The seconds until the checkpoint is on the disk.
        checkpoint_bytes: Its size.
        loader: The seconds of the loader for a batch.
        copy: The seconds of a copy of the same batch in memory.
        no_price: Why the price of determinism was not measured; None if it was.
        profile: The summary of a profile, if there is one.
    """

    work: StepWork
    machine: Machine = field(init=False)
    micro_batches: int = 1
    steps: int = 1
    rounds: list[dict[str, float]] = field(default_factory=list)
    phases: list[dict[str, float]] = field(default_factory=list)
    rates: Sequence[ProductRate] = ()
    product_flops: float = 0.0
    has_attention: bool = False
    no_floor: str | None = None
    startup: dict[str, float] = field(default_factory=dict)
    memory: float = 0.0
    planned_memory: float | None = None
    checkpoint_stall: float = 0.0
    checkpoint_seconds: float = 0.0
    checkpoint_bytes: int = 0
    loader: float = 0.0
    copy: float = 0.0
    no_price: str | None = None
    profile: Any = None

    @property
    def step_seconds(self) -> float:
        """The time of a measured step, which may have fewer micro-batches than the config's."""
        return median(self.rounds, STEP)

    @property
    def floor_seconds(self) -> float | None:
        return None if self.no_floor else statistics.median(each[PRODUCTS] + each[ATTENTION] for each in self.rounds)

    @property
    def step_over_floor(self) -> float | None:
        """The median over rounds of the step's time over that of its products and attention alone."""
        if self.no_floor:
            return None
        return statistics.median(each[STEP] / (each[PRODUCTS] + each[ATTENTION]) for each in self.rounds)

    @property
    def phase_seconds(self) -> dict[str, float]:
        """The median time of each phase in a measured step; logging is spread over the steps between two lines."""
        names = dict.fromkeys(name for each in self.phases for name in each)
        found = {name: statistics.median(each.get(name, 0.0) for each in self.phases) for name in names}
        if LOGGING in found:
            found[LOGGING] /= self.work.log_interval
        return found

    @property
    def config_step_seconds(self) -> float:
        """The time of a step as the config has it, from the phases of a step with fewer micro-batches."""
        phases = self.phase_seconds
        once = sum(phases.get(name, 0.0) for name in ONCE_PER_STEP) / sum(phases.values())
        return self.step_seconds * ((1 - once) * self.work.accumulation / self.micro_batches + once)

    @property
    def tokens_per_second(self) -> float:
        return self.work.micro_batch_tokens * self.work.accumulation / self.config_step_seconds

    @property
    def fastest_product(self) -> float:
        """The FLOP/s of the fastest matrix product that was measured in the run's number format."""
        return max([self.machine.large_product, *(rate.flops_per_second for rate in self.rates)])

    @property
    def peak(self) -> float:
        """The FLOP/s that MFU refers to: of the data sheet if it is known, else of the fastest product."""
        return self.machine.known_peak or self.fastest_product

    @property
    def mfu(self) -> float | None:
        """The share of the peak that the FLOPs of the model use; None if they can't be counted."""
        flops = self.work.flops_per_token
        return None if flops is None else flops * self.tokens_per_second / self.peak

    @property
    def product_rate(self) -> float | None:
        """The FLOP/s of all products of the floor together."""
        return self.product_flops * self.micro_batches / median(self.rounds, PRODUCTS) if self.product_flops else None

    @property
    def price_of_determinism(self) -> float | None:
        """The median over rounds of the step's time over that of a step without `system.deterministic`."""
        return None if self.no_price else ratio(self.rounds, STEP, FAST)

    @property
    def traffic_seconds(self) -> float | None:
        """The time to read and write what all other operations of a measured step do in eager mode."""
        if self.work.other_bytes is None:
            return None
        return self.micro_batches * self.work.other_bytes / self.machine.bandwidth
