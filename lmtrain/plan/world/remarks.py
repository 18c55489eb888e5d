"""Finds likely mistakes in a run of many processes; each function finds one and names the key and the way out."""

from collections.abc import Callable
from dataclasses import replace

from lmtrain.config.batch_size import divisors
from lmtrain.plan.world.estimate import TYPICAL, WorldEstimate
from lmtrain.plan.world.plan import WorldPlan
from lmtrain.plan.world.processes import DDP, FSDP, Processes
from lmtrain.terminal.tables import as_bytes, as_milliseconds

MUCH_FASTER = 1.1  # times the speed


def fits_nowhere(world: WorldPlan) -> str | None:
    if world.memory_bytes is None or not world.estimates or any(each.fits for each in world.estimates):
        return None
    needed = f"a process needs {as_bytes(world.memory_bytes)}, more than any of these GPUs has"
    if world.processes.kind == DDP:
        return f"parallel=ddp: {needed}; with parallel=fsdp, processes share the model"
    return (
        f"parallel=fsdp: {needed}; more processes with parallel.shards=null, a smaller data.batch_size, "
        "model.recompute=layer or parallel.reduce_each_micro_batch=true need less"
    )


def faster_shards(world: WorldPlan, planned: Callable[[Processes], WorldPlan]) -> str | None:
    """Return a remark about another number of shards with which the run fits and is much faster."""
    now = _typical(world)
    if world.processes.kind != FSDP or now is None:
        return None
    others = [
        planned(replace(world.processes, shards=shards))
        for shards in divisors(world.processes.size)
        if shards != world.processes.shards
    ]
    fitting = [(each, found) for each in others if (found := _typical(each)) is not None and found.fits]
    if not fitting:
        return None
    best, then = min(fitting, key=lambda pair: pair[1].step.seconds)
    if now.fits and then.step.seconds * MUCH_FASTER > now.step.seconds:
        return None
    return (
        f"parallel.shards={world.processes.shards}: with parallel.shards={best.processes.shards}, a step on "
        f"{TYPICAL}s takes {as_milliseconds(then.step.seconds)} instead of {as_milliseconds(now.step.seconds)}, and a "
        f"process needs {as_bytes(best.memory_bytes or 0)}"
    )


def _typical(world: WorldPlan) -> WorldEstimate | None:
    return next((each for each in world.estimates if each.gpu.name == TYPICAL), None)
