"""Measures the steps of a running trainer and their floor, in rounds in which both take turns."""

import contextlib
import math
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

import torch

from lmtrain.benchmark.step.findings import ATTENTION, FAST, PRODUCTS, STEP, Findings
from lmtrain.benchmark.step.floor import Floor
from lmtrain.benchmark.step.limits import measure_machine, with_products_of_model
from lmtrain.benchmark.step.profile import profiled
from lmtrain.benchmark.step.recording import record_micro_batch
from lmtrain.benchmark.step.timeline import Timeline, marked
from lmtrain.benchmark.step.training import TrainingInTurns
from lmtrain.benchmark.turns import rotated
from lmtrain.plan.calls import Call
from lmtrain.system import System

WARMUP_S, WARMUP_STEPS = 1.0, 20  # steps until either is reached, but at least one after the first
SAMPLE_S = 0.2  # a measurement takes at least so long
ROUNDS = 5  # wanted: a step has fewer micro-batches if so many rounds would take too long
MIN_ROUNDS, MAX_ROUNDS = 3, 25
PARTS_OF_A_ROUND = 3  # a step, its floor, and a step with timers
PRICE_SHARE = 0.3  # of the time, for the first step without determinism, which compiles again
PROFILED_S, PROFILED_STEPS = 2.0, 3

Turns = Generator[None, None, float]


class StepMeasurement:
    """The measurement of a run's steps; `turns` is for `TrainingInTurns.run`.

    Args:
        findings: Where the results go.
        training: The training loop.
        system: The device of the run.
        calls: The matrix products and attention of a micro-batch; None if they are not known.
        seconds: The time that the rounds may take.
        profile_file: Where the trace of a profile goes; None for no profile.
        micro_batches: Micro-batches per measured step; None means the config's, or fewer if the time is short.
    """

    def __init__(
        self,
        findings: Findings,
        training: TrainingInTurns,
        system: System,
        calls: Sequence[Call] | None,
        *,
        seconds: float,
        profile_file: Path | None = None,
        micro_batches: int | None = None,
    ) -> None:
        self.findings, self.training, self.system, self.calls = findings, training, system, calls
        self.seconds, self.profile_file, self.micro_batches = seconds, profile_file, micro_batches
        self.timeline = Timeline(system.device)

    def turns(self) -> Iterator[None]:
        """Measure everything; each `yield` is a training step."""
        found = self.findings
        self.training.set_micro_batches(1)
        first = yield from self._steps(1)
        found.startup["first step"] = first
        one = yield from self._warm_up()
        found.memory = self.system.memory_gb() * 1e9
        found.machine = measure_machine(self.system)  # only now, since it also needs memory
        self._choose_sizes(one)
        floor = self._floor_if_possible()
        yield from self._rounds(floor, first, one)
        if floor is not None:
            found.rates, found.product_flops = floor.rates(), floor.product_flops
            found.has_attention = floor.has_attention
            found.machine = with_products_of_model(found.machine, found.rates, self.system)
        del floor
        self._checkpoint()
        if self.profile_file is not None:
            yield from self._profile(self.profile_file)

    def _floor_if_possible(self) -> Floor | None:
        if self.calls is None:
            return None
        calls = self._real_calls(self.calls) if self.system.device.type == "cuda" else self.calls
        try:
            return Floor(calls, self.system)
        except RuntimeError as error:  # no memory left, or the device lacks a kernel that `plan` assumes
            self.findings.no_floor = f"its operations failed: {str(error).strip().partition(chr(10))[0]}"
            return None

    def _real_calls(self, planned: Sequence[Call]) -> Sequence[Call]:
        """Return the calls of a real micro-batch, or the planned ones if it has a kernel that can't be recorded."""
        try:
            calls = record_micro_batch(self.training.trainer)
        except Exception:  # no memory left for a step that is not compiled, or any error of a user's model
            return planned
        has_attention = any(call.is_attention for call in calls)
        return calls if has_attention or not any(call.is_attention for call in planned) else planned

    def _warm_up(self) -> Turns:
        """Run steps until their time is steady; return the seconds of a micro-batch in the last one."""
        micro_batches = min(self.findings.work.accumulation, 2)  # the second one needs the most memory
        self.training.set_micro_batches(micro_batches)
        total, seconds = 0.0, 0.0
        for _ in range(WARMUP_STEPS):
            seconds = yield from self._steps(1)
            total += seconds
            if total >= WARMUP_S:
                break
        return seconds / micro_batches

    def _choose_sizes(self, one: float) -> None:
        """Choose the micro-batches of a step and the steps of a measurement, from the time of one micro-batch."""
        found = self.findings
        affordable = int(self.seconds / (ROUNDS * PARTS_OF_A_ROUND * one))
        found.micro_batches = self.micro_batches or min(found.work.accumulation, max(1, affordable))
        found.steps = math.ceil(SAMPLE_S / (found.micro_batches * one))
        self.training.set_micro_batches(found.micro_batches)

    def _rounds(self, floor: Floor | None, first: float, one: float) -> Iterator[None]:
        found = self.findings
        contenders: dict[str, Callable[[], Generator[None, None, dict[str, float]]]] = {
            STEP: self._step,
            "phases": self._phases,
        }
        if floor is not None:
            contenders["floor"] = lambda: self._floor(floor)
        if found.no_price is None and first > PRICE_SHARE * self.seconds and self.system.compiles:
            found.no_price = f"to compile the step again would take about {first - one:.0f} s; give more --seconds"
        if found.no_price is None:
            with self._without_determinism():
                yield  # compiles again, or lets libraries choose other kernels
            contenders[FAST] = self._fast_step
        started = time.perf_counter()
        while len(found.rounds) < MAX_ROUNDS:
            if len(found.rounds) >= MIN_ROUNDS and time.perf_counter() - started > self.seconds:
                break
            seconds: dict[str, float] = {}
            for _, measure in rotated(contenders, len(found.rounds)):
                seconds |= yield from measure()
            found.rounds.append(seconds)

    def _steps(self, number: int) -> Turns:
        """Run that many steps of the loop; return the seconds of one."""
        self.system.synchronize()
        started = time.perf_counter()
        for _ in range(number):
            yield
        self.system.synchronize()
        return (time.perf_counter() - started) / number

    def _step(self) -> Generator[None, None, dict[str, float]]:
        return {STEP: (yield from self._steps(self.findings.steps))}

    def _fast_step(self) -> Generator[None, None, dict[str, float]]:
        with self._without_determinism():
            return {FAST: (yield from self._steps(self.findings.steps))}

    def _floor(self, floor: Floor) -> Generator[None, None, dict[str, float]]:
        found = self.findings
        each = [floor.seconds(found.micro_batches) for _ in range(found.steps)]
        yield from ()
        return {name: sum(seconds[name] for seconds in each) / found.steps for name in (PRODUCTS, ATTENTION)}

    def _phases(self) -> Generator[None, None, dict[str, float]]:
        """Run steps with timers, and log each of them."""
        found, trainer = self.findings, self.training.trainer
        interval, trainer.log_interval = trainer.log_interval, 1
        self.training.marks = self.timeline
        try:
            with marked(trainer, self.timeline):
                for _ in range(found.steps):
                    yield
            self.timeline.mark("end")
        finally:
            trainer.log_interval, self.training.marks = interval, None
        found.phases.append({name: seconds / found.steps for name, seconds in self.timeline.seconds().items()})
        return {}

    @contextlib.contextmanager
    def _without_determinism(self) -> Iterator[None]:
        """Allow algorithms that are not deterministic, as far as a running process can switch to them."""
        if self.system.compiles:
            torch.use_deterministic_algorithms(False)
        else:  # without importing the compiler, as in `System`
            torch.set_deterministic_debug_mode("default")
        try:
            yield
        finally:
            if self.system.compiles:
                torch.use_deterministic_algorithms(True)
            else:
                torch.set_deterministic_debug_mode("error")

    def _checkpoint(self) -> None:
        """Save a checkpoint as the loop does, and measure how long it waits."""
        found, trainer = self.findings, self.training.trainer
        trainer.saver.wait()
        self.system.synchronize()
        started = time.perf_counter()
        trainer.checkpoints.save(trainer.state)
        found.checkpoint_stall = time.perf_counter() - started
        trainer.saver.wait()
        found.checkpoint_seconds = time.perf_counter() - started
        files = [file for file in trainer.saver.folder.path.rglob("*") if file.is_file() and not file.is_symlink()]
        found.checkpoint_bytes = sum(file.stat().st_size for file in files)

    def _profile(self, file: Path) -> Iterator[None]:
        found = self.findings
        steps = min(PROFILED_STEPS, max(1, int(PROFILED_S / found.step_seconds)))
        with profiled(self.training, self.system, file):
            yield from self._steps(steps)
