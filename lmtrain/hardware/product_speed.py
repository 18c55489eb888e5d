"""Measures the speed of matrix products at the device's best."""

import time
from collections.abc import Callable, Sequence

import torch

Size = tuple[int, int, int]  # rows of A, columns of A, columns of B

# Square products that reach the full speed. On a CPU, which of the two is faster depends on its caches and the format.
LARGE: dict[str, Sequence[Size]] = {"cpu": [(1024,) * 3, (2048,) * 3], "cuda": [(8192,) * 3]}
WARM_UP = 2  # tries: they allocate, load kernels, and wake the threads
LEAST_TRIES, MOST_TRIES = 3, 100
ENOUGH_S = 0.15  # for each size: longer than the time slice of another process
LONGEST_S = 0.25  # a size that would take longer, as on a CPU that emulates the format, is left out


def fastest_product(
    sizes: Sequence[Size],
    dtype: torch.dtype,
    device: torch.device,
    synchronize: Callable[[], None],
    at_least: float = 0.0,
) -> float:
    """Return the FLOP/s of the fastest product of these sizes: the best of several tries, after a warm-up.

    `at_least` is a speed that was measured before.
    """
    best = at_least
    for size in sizes:
        rows, inner, columns = size
        flops = 2.0 * rows * inner * columns
        if best == 0 or flops / best <= LONGEST_S:
            best = max(best, flops / _best_seconds(size, dtype, device, synchronize))
    return best


def _best_seconds(size: Size, dtype: torch.dtype, device: torch.device, synchronize: Callable[[], None]) -> float:
    rows, inner, columns = size
    generator = torch.Generator(device).manual_seed(0)  # not the generator of a run
    # Not ones: a GPU needs less power for them, and then runs faster.
    a, b = (
        torch.empty(shape, device=device).normal_(std=0.02, generator=generator).to(dtype)
        for shape in ((rows, inner), (inner, columns))
    )
    out = torch.empty(rows, columns, device=device, dtype=dtype)  # once, because new memory takes time
    seconds: list[float] = []
    while len(seconds) < MOST_TRIES + WARM_UP and (
        len(seconds) < LEAST_TRIES + WARM_UP or sum(seconds[WARM_UP:]) < ENOUGH_S
    ):
        synchronize()
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        synchronize()
        seconds.append(time.perf_counter() - started)
    return min(seconds[WARM_UP:])
