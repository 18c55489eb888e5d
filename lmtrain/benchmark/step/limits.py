"""The machine's own limits: memory bandwidth, and a copy of a batch in memory against the loader."""

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from lmtrain.benchmark.step.findings import Machine
from lmtrain.benchmark.step.floor import ProductRate
from lmtrain.data.loader import TokenLoader
from lmtrain.hardware.product_speed import fastest_product
from lmtrain.system import System

TRIES = 5
COPY_BYTES = {"cpu": 1 << 28, "cuda": 1 << 31}  # much more than any cache, so that each copy reads and writes memory
LOADER_S = 0.05  # a measurement of the loader takes at least so long


def measure_machine(system: System) -> Machine:
    """Measure the machine in the way in which a run uses it."""
    others = {"float32": [torch.bfloat16], "bfloat16": [torch.float32], "float16": [torch.float32]}
    has_them = system.device.type == "cpu" or torch.cuda.is_bf16_supported(including_emulation=False)
    return Machine(
        device=system.describe(),
        device_type=system.device.type,
        dtype=system.dtype_name,
        compiles=system.compiles,
        automatic=sorted(system.automatic),
        known_peak=system.peak_flops(),
        large_product=system.measure_flops(),
        other_products={
            str(dtype).removeprefix("torch."): system.measure_flops(dtype)
            for dtype in others.get(system.dtype_name, [])
            if has_them
        },
        bandwidth=memory_bandwidth(system),
    )


def with_products_of_model(machine: Machine, rates: Sequence[ProductRate], system: System) -> Machine:
    """Return the machine with the products of the model among the large ones, in every number format.

    A product of the model may be faster than the square ones, and the limit is what is fastest. For a fair comparison,
    the model's fastest product is also measured in the other formats.
    """
    own = [rate for rate in rates if rate.dtype == machine.dtype]
    if not own:
        return machine
    best = max(own, key=lambda rate: rate.flops_per_second)
    size = [(best.rows, best.inner, best.columns)]
    return dataclasses.replace(
        machine,
        large_product=max(machine.large_product, best.flops_per_second),
        other_products={
            name: fastest_product(size, getattr(torch, name), system.device, system.synchronize, at_least=flops)
            for name, flops in machine.other_products.items()
        },
    )


def memory_bandwidth(system: System) -> float:
    """Return the bytes per second that a large copy reads and writes on the device: the best of several tries."""
    size = COPY_BYTES[system.device.type]
    if system.device.type == "cuda":
        size = min(size, torch.cuda.mem_get_info(system.device)[0] // 4)
    source = torch.zeros(size, dtype=torch.uint8, device=system.device)
    target = torch.zeros_like(source)
    seconds = []
    for _ in range(TRIES):
        system.synchronize()
        started = time.perf_counter()
        target.copy_(source)
        system.synchronize()
        seconds.append(time.perf_counter() - started)
    return 2 * size / min(seconds)


def loader_seconds(loader: TokenLoader) -> tuple[float, float]:
    """Return the seconds that the loader takes for a batch, and those of a copy of the same batch in memory."""
    x, y = loader.batch(0)
    return _seconds_per_call(loader.batch), _seconds_per_call(lambda _: (x.clone(), y.clone()))


def _seconds_per_call(call: Callable[[int], object]) -> float:
    call(0)
    seconds, index = [], 0
    for _ in range(TRIES):
        started, first = time.perf_counter(), index
        while index == first or time.perf_counter() - started < LOADER_S / TRIES:
            call(index)
            index += 1
        seconds.append((time.perf_counter() - started) / (index - first))
    return sorted(seconds)[TRIES // 2]
