"""Says in a few sentences what limits a step, and what to try next."""

from lmtrain.benchmark.step.findings import Findings
from lmtrain.benchmark.step.timeline import CLIP, DATA, OPTIMIZER
from lmtrain.system import COMPILE_KEY, DTYPE_KEY
from lmtrain.terminal.units import percent, si_unit

CLOSE = 1.10  # a step below so many times its floor has little left to gain
WAITING = 0.02  # a share of the step
OFTEN = 0.10  # a share of the step for what happens once per step
FASTER_FORMAT = 1.5  # times the speed of the run's number format
SLOW_SHAPE = 0.5  # of the fastest product
DEAR = 1.05  # times the step without determinism


def sentences(found: Findings) -> list[str]:
    """Return the sentences: first what limits the step, then what to try."""
    return [_limit(found), *_what_to_try(found)]


def _limit(found: Findings) -> str:
    ratio = found.step_over_floor
    if ratio is None:
        return f"The floor of this step is not known: {found.no_floor}."
    computing = percent(min(1.0, 1 / ratio))
    if ratio <= CLOSE:
        return (
            f"Matrix products and attention take {computing} of the step: it is as fast as this machine computes them, "
            "and only faster products (another number format, device or shape) can make it much faster."
        )
    rest = found.step_seconds * (1 - 1 / ratio)  # of the same ratio, since medians of times differ on a busy machine
    text = f"Matrix products and attention alone would take {computing} of the step; the other {1000 * rest:,.0f} ms"
    if found.traffic_seconds is not None and not found.machine.compiles:
        traffic = found.traffic_seconds
        return (
            f"{text} are everything else, which moves {si_unit(traffic * found.machine.bandwidth, 'B')} in eager mode, "
            f"{1000 * traffic:,.0f} ms at this machine's memory bandwidth."
        )
    return f"{text} are everything else: elementwise operations, memory, the optimizer and Python."


def _what_to_try(found: Findings) -> list[str]:
    phases, machine, tries = found.phase_seconds, found.machine, []
    total = sum(phases.values())
    waiting = phases.get(DATA, 0.0) / total
    if waiting > WAITING and found.loader * found.micro_batches > phases[DATA] / 2:
        tries.append(
            f"The step waits for data during {percent(waiting)} of its time: a batch takes "
            f"{1000 * found.loader:.1f} ms to load. Put the token files on a faster disk."
        )
    for dtype, flops in machine.other_products.items():
        gains = dtype == "float32" or found.work.gains_in_16_bits
        if gains and flops > FASTER_FORMAT * machine.large_product and DTYPE_KEY not in machine.automatic:
            tries.append(
                f"This machine multiplies {dtype} {flops / machine.large_product:.1f} times as fast as "
                f"{machine.dtype}: try system.dtype={dtype}."
            )
    ratio = found.step_over_floor
    if ratio is not None and ratio > CLOSE and not machine.compiles:
        tries.append(
            "system.compile=auto did not compile: the run is too short to repay it, or this machine has no compiler."
            if COMPILE_KEY in machine.automatic
            else "The model is not compiled: try system.compile=true, which joins the operations between products."
        )
    once = (phases.get(CLIP, 0.0) + phases.get(OPTIMIZER, 0.0)) / total
    if once > OFTEN and found.micro_batches == found.work.accumulation:
        tries.append(
            f"Clipping and the optimizer take {percent(once)} of the step: with more tokens per step (data.batch_size "
            "or trainer.gradient_accumulation_steps) they run less often."
        )
    slow = found.product_rate
    if slow is not None and slow < SLOW_SHAPE * found.fastest_product:
        tries.append(
            f"The products of this model run at {percent(slow / found.fastest_product)} of the fastest one here "
            f"({si_unit(found.fastest_product, 'FLOP/s')}): a larger data.batch_size or a wider model is faster."
        )
    price = found.price_of_determinism
    if price is not None and price > DEAR:
        tries.append(
            f"system.deterministic=true makes the step {percent(price - 1)} longer; without it, two runs differ in "
            "their last digits."
        )
    return tries[:3]
