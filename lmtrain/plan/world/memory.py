"""The memory that a process of a run of many needs, from that of a run of one process."""

from collections.abc import Mapping

from lmtrain.plan.memory import KINDS, StepCost
from lmtrain.plan.world.processes import DDP, FLOAT32, Processes
from lmtrain.plan.world.units import Units, WholeTensors

GATHERED, ON_THE_WAY, WHOLE, BUCKETS = "gathered", "on_the_way", "whole", "buckets"
KINDS_OF_A_PROCESS: Mapping[str, str] = {
    **KINDS,
    GATHERED: "weights gathered from other processes",
    ON_THE_WAY: "gradients on their way",
    BUCKETS: "gradients in buckets",
    WHOLE: "whole tensors of the optimizer",
}
SHARDED = ("average", "update", "evaluation")
ADAMW_STATE = 2 * FLOAT32  # bytes for each number; optimizers that need some tensors whole use AdamW for the others


def memory_of_process(
    step: StepCost, processes: Processes, units: Units, micro_batches: int, whole: WholeTensors
) -> dict[str, int]:
    """Return the bytes by kind that the process with most of them needs at the peak of a step.

    Args:
        step: The cost of a step of one process with the micro-batches of this one.
        processes: The processes.
        units: The model.
        micro_batches: The micro-batches of a process; a third one adds nothing.
        whole: With FSDP, the tensors that the optimizer needs as a whole.
    """
    moments = zip((True, False), step.moments, strict=True)
    found = [_at(dict(kinds), computes, processes, units, micro_batches, whole) for computes, kinds in moments]
    return max(found, key=lambda kinds: sum(kinds.values()))


def _at(
    kinds: dict[str, int], computes: bool, processes: Processes, units: Units, micro_batches: int, whole: WholeTensors
) -> dict[str, int]:
    """Return the bytes of a process at the largest moment of computing, or of the update."""
    gradients = FLOAT32 * units.numel
    if processes.kind == DDP:
        # The buckets always exist. Gradients become views of them when they are sent, and are tensors of their own in
        # the micro-batches before.
        kinds["gradients"] = gradients if computes and micro_batches > 1 else 0
        return _in_order(kinds | {BUCKETS: gradients})
    shards = processes.shards
    local = FLOAT32 * units.local_numel(shards)
    share = units.local_numel(shards) / units.numel
    buffers = max(0, kinds.get("weights", 0) - gradients)  # and weights that are not trained
    kinds["optimizer"] = _optimizer_state(kinds.get("optimizer", 0), units, shards, whole)
    for kind in SHARDED:
        kinds[kind] = round(share * kinds.get(kind, 0))
    kinds["weights"], kinds["gradients"] = local + buffers, local
    if shards > 1 and computes:
        kinds |= _messages(processes, units, micro_batches)
    if shards > 1 and not computes:
        kinds[WHOLE] = 3 * FLOAT32 * whole.most  # gradients and weights, and one of both as it is received
    if processes.gathers_in_16_bits or not computes:
        kinds.pop("casts", None)
    return _in_order(kinds)


def _messages(processes: Processes, units: Units, micro_batches: int) -> dict[str, int]:
    """Return the bytes of gathered weights, and of gradients that are not divided yet."""
    some = units.root.numel + 2 * units.largest_layer  # a layer and, on its way, the next one
    kept = min(some, units.numel) if processes.reshard else units.numel
    largest = max(unit.numel for unit in units.all)
    # Gradients of the unit that was computed last, and two messages: one is sent, one is filled.
    on_the_way = (processes.gathered_bytes + 2 * processes.reduced_bytes) * largest
    if micro_batches > 1 and not processes.reduces_each:
        on_the_way += processes.reduced_bytes * units.numel  # the sum over micro-batches
    return {GATHERED: processes.gathered_bytes * kept, ON_THE_WAY: on_the_way}


def _optimizer_state(size: int, units: Units, shards: int, whole: WholeTensors) -> int:
    """Return the bytes of the state of the process that has most: of rows, and of whole tensors."""
    of_rows = size if not whole.numel else min(size, ADAMW_STATE * (units.numel - whole.numel))
    of_whole = size - of_rows
    share = units.local_numel(shards) / units.numel
    return round(share * of_rows) + (of_whole * whole.most // whole.numel if whole.numel else 0)


def _in_order(peak: Mapping[str, int]) -> dict[str, int]:
    return {kind: peak[kind] for kind in KINDS_OF_A_PROCESS if peak.get(kind)}
