"""The sentences under the tables follow from the numbers."""

from dataclasses import replace
from typing import Any

import pytest

from lmtrain.benchmark.step.advice import sentences
from lmtrain.benchmark.step.findings import Findings, Machine, StepWork
from lmtrain.benchmark.step.floor import ProductRate

WORK = StepWork("Llama", 1000, 4, 16, 4, 6000.0, 2e9, 10, has_real_data=True)
MACHINE = Machine("cpu", "cpu", "float32", True, (), None, 1e9, {}, 1e10)
SEPARATE = {"data": 0.0, "forward": 0.4, "backward": 0.5, "clip": 0.02, "optimizer": 0.06, "logging": 0.2}


def found(
    step: float = 1.0, machine: Machine = MACHINE, phases: dict[str, float] = SEPARATE, **changes: Any
) -> Findings:
    rounds = [{"step": step * noise, "products": 0.7 * noise, "attention": 0.1 * noise} for noise in (1.0, 3.0, 1.1)]
    made = Findings(
        WORK, micro_batches=2, rounds=rounds, phases=[phases] * 3, no_price="unknown", product_flops=3e8, **changes
    )
    made.machine = machine
    return made


def test_numbers_that_follow_from_the_rounds() -> None:
    numbers = found()
    assert numbers.step_seconds == pytest.approx(1.1)
    assert numbers.step_over_floor == pytest.approx(1.25)
    assert numbers.floor_seconds == pytest.approx(0.88)
    assert numbers.phase_seconds["logging"] == pytest.approx(0.02)  # a line every 10 steps
    assert sum(numbers.phase_seconds.values()) == pytest.approx(1.0)
    # 10% of the step happens once; the rest is twice as much with 4 micro-batches as with the 2 that were measured.
    assert numbers.config_step_seconds == pytest.approx(1.1 * (0.9 * 2 + 0.1))
    assert numbers.tokens_per_second == pytest.approx(4 * 16 * 4 / numbers.config_step_seconds)
    assert numbers.product_rate == pytest.approx(2 * 3e8 / 0.77)
    assert numbers.fastest_product == numbers.peak == 1e9
    assert numbers.mfu == pytest.approx(6000 * numbers.tokens_per_second / 1e9)
    assert numbers.traffic_seconds == pytest.approx(2 * 2e9 / 1e10)


def test_the_peak_is_that_of_the_data_sheet_or_of_the_fastest_product() -> None:
    rate = ProductRate("mm", "A B", 1, 1, 1, 1, "float32", 1, 3e9, 1.0)
    assert found(rates=[rate]).peak == 3e9
    assert found(rates=[rate], machine=replace(MACHINE, known_peak=2e9)).peak == 2e9
    assert replace(WORK, flops_per_token=None).flops_per_token is None


def test_a_step_near_its_floor_needs_faster_products() -> None:
    (sentence,) = sentences(found(step=0.84))
    assert "95.2% of the step" in sentence
    assert "only faster products" in sentence


def test_the_rest_of_an_eager_step_is_compared_with_the_memory_bandwidth() -> None:
    first, compile_it = sentences(found(machine=replace(MACHINE, compiles=False)))
    assert "80.0% of the step; the other 220 ms" in first
    assert "moves 4 GB in eager mode, 400 ms at this machine's memory bandwidth" in first
    assert "system.compile=true" in compile_it


def test_what_to_try_next() -> None:
    other = sentences(found(machine=replace(MACHINE, other_products={"bfloat16": 4e9})))
    assert any("bfloat16 4.0 times as fast as float32: try system.dtype=bfloat16" in sentence for sentence in other)
    narrow = found(machine=replace(MACHINE, other_products={"bfloat16": 4e9}))
    narrow.work = replace(WORK, gains_in_16_bits=False)
    assert not any("system.dtype" in sentence for sentence in sentences(narrow))
    chosen = replace(
        MACHINE, other_products={"bfloat16": 4e9}, automatic=["system.compile", "system.dtype"], compiles=False
    )
    assert sentences(found(machine=chosen))[1:] == [
        "system.compile=auto did not compile: the run is too short to repay it, or this machine has no compiler."
    ]
    waiting = {**SEPARATE, "data": 0.5}
    assert any("waits for data" in sentence for sentence in sentences(found(phases=waiting, loader=0.2)))
    # The loader is quick; the thread that loads the data was only late.
    assert not any("waits for data" in sentence for sentence in sentences(found(phases=waiting, loader=1e-5)))
    slow = sentences(found(machine=replace(MACHINE, large_product=1e10)))
    assert any("a larger data.batch_size or a wider model" in sentence for sentence in slow)


def test_determinism_that_costs_something_is_named() -> None:
    numbers = found()
    numbers.no_price = None
    for each in numbers.rounds:
        each["not_deterministic"] = each["step"] / 1.25
    assert numbers.price_of_determinism == pytest.approx(1.25)
    assert any("makes the step 25.0% longer" in sentence for sentence in sentences(numbers))


def test_without_a_floor_the_reason_is_given() -> None:
    numbers = found(no_floor="the step has no matrix products")
    assert numbers.step_over_floor is None
    assert numbers.floor_seconds is None
    assert sentences(numbers)[0] == "The floor of this step is not known: the step has no matrix products."
