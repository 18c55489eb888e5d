"""The memory that a process of a run of many needs, from that of a run of one process."""

from collections.abc import Mapping

from lmtrain.plan.memory import KINDS, StepCost
from lmtrain.plan.world.processes import DDP, FLOAT32, Processes
from lmtrain.plan.world.units import Units

GATHERED, ON_THE_WAY, WHOLE, BUCKETS = "gathered", "on_the_way", "whole", "buckets"
KINDS_OF_A_PROCESS: Mapping[str, str] = {
    **KINDS,
    GATHERED: "weights gathered from other processes",
    ON_THE_WAY: "gradients on their way",
    BUCKETS: "gradients in buckets",
    WHOLE: "whole tensors of the optimizer",
}
SHARDED = ("weights", "gradients", "optimizer", "average", "update", "evaluation")


def memory_of_process(
    step: StepCost, processes: Processes, units: Units, micro_batches: int, whole_numel: int = 0
) -> dict[str, int]:
    """Return the bytes by kind that the first process needs at the peak of a step; it has the most.

    Args:
        step: The cost of a step of one process with the micro-batches of this one.
        processes: The processes.
        units: The model.
        micro_batches: The micro-batches of a process; a third one adds nothing.
        whole_numel: With FSDP, the numbers in tensors that the optimizer needs as a whole.
    """
    peak = dict(step.peak)
    gradients = FLOAT32 * units.numel
    if processes.kind == DDP:
        # The buckets always exist. Gradients become views of them when they are sent, and are tensors of their own in
        # the micro-batches before.
        peak["gradients"] = gradients if micro_batches > 1 else 0
        return _in_order(peak | {BUCKETS: gradients})
    shards = processes.shards
    local = FLOAT32 * units.local_numel(shards)
    share = units.local_numel(shards) / units.numel
    buffers = max(0, peak.get("weights", 0) - gradients)  # and weights that are not trained
    for kind in SHARDED:
        peak[kind] = round(share * peak.get(kind, 0))
    peak["weights"], peak["gradients"] = local + buffers, local
    if processes.gathers_in_16_bits:
        peak.pop("casts", None)
    if shards > 1:
        some = units.root.numel + 2 * units.largest_block  # a block and, on its way, the next one
        peak[GATHERED] = processes.gathered_bytes * (min(some, units.numel) if processes.reshard else units.numel)
        largest = max(unit.numel for unit in units.all)
        # Gradients of the unit that was computed last, and two messages: one is sent, one is filled.
        peak[ON_THE_WAY] = (processes.gathered_bytes + 2 * processes.reduced_bytes) * largest
        if micro_batches > 1:
            peak[ON_THE_WAY] += processes.reduced_bytes * units.numel  # the sum over micro-batches is not divided yet
        peak[WHOLE] = round(2 * FLOAT32 * whole_numel / shards)
    return _in_order(peak)


def _in_order(peak: Mapping[str, int]) -> dict[str, int]:
    return {kind: peak[kind] for kind in KINDS_OF_A_PROCESS if peak.get(kind)}
