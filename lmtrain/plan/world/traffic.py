"""What the processes of a run send each other in a step.

A ring of n processes sends of M bytes: in an all-gather or a reduce-scatter, (n - 1) / n · M from each process, and in
an all-reduce, which is both, twice as much. In an all-to-all, a process keeps one n-th of what it has.

Sources: Patarasuk and Yuan, "Bandwidth optimal all-reduce algorithms for clusters of workstations" (2009); Rajbhandari
et al., "ZeRO" (2020), section 7; Zhao et al., "PyTorch FSDP" (2023), section 3.2.2.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lmtrain.plan.world.processes import DDP, FLOAT32, Processes

if TYPE_CHECKING:
    from lmtrain.plan.world.units import Units  # loads torch, which the options of `plan` need not wait for

ALL_REDUCE, ALL_GATHER, REDUCE_SCATTER, ALL_TO_ALL = "all-reduce", "all-gather", "reduce-scatter", "all-to-all"
ROUNDS: Mapping[str, int] = {ALL_REDUCE: 2, ALL_GATHER: 1, REDUCE_SCATTER: 1, ALL_TO_ALL: 1}
FORWARD, BACKWARD, UPDATE = "forward", "backward", "update"
GRADIENTS = "gradients"
NCCL, GLOO = "nccl", "gloo"


@dataclass(frozen=True)
class Collective:
    """A kind of message of a step.

    Attributes:
        kind: What the processes do together.
        purpose: What it is for, in words.
        during: The part of a step beside which it runs.
        ranks: Processes in a group.
        stride: The distance between the ranks of neighbours in a group.
        size: Bytes of the whole: of the gathered, reduced or scattered tensors, or of what one process deals out.
        calls: Messages into which these bytes are divided.
        times: How often in a step.
    """

    kind: str
    purpose: str
    during: str
    ranks: int
    size: float
    calls: int
    times: float = 1.0
    stride: int = 1

    def sent(self, backend: str = NCCL) -> float:
        """Return the bytes that a process sends in a step.

        Gloo has no reduce-scatter: torch does an all-reduce instead.
        """
        kind = ALL_REDUCE if (backend, self.kind) == (GLOO, REDUCE_SCATTER) else self.kind
        return ROUNDS[kind] * (self.ranks - 1) / self.ranks * self.size * self.times

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "sent": self.sent()}


def traffic_of_step(
    processes: Processes, units: "Units", micro_batches: float, whole_numel: int = 0
) -> list[Collective]:
    """Return what the processes send in a step.

    Args:
        processes: The processes.
        units: The model.
        micro_batches: The micro-batches of a process.
        whole_numel: With FSDP, the numbers in tensors that the optimizer needs as a whole.
    """
    if processes.kind == DDP:
        size = FLOAT32 * units.numel
        calls = max(1, -(-size // processes.bucket_bytes))
        return [Collective(ALL_REDUCE, GRADIENTS, BACKWARD, processes.size, size, calls)]
    found, shards, calls = [], processes.shards, len(units.all)
    padded, of_layers = units.padded_numel(shards), units.padded_numel(shards) - units.root.padded_numel(shards)
    sums = micro_batches if processes.reduces_each else 1.0  # how often gradients are sent
    if shards > 1:
        weights, again = processes.gathered_bytes * padded, processes.gathered_bytes * of_layers
        gathers = micro_batches if processes.reshard else 1.0
        found.append(Collective(ALL_GATHER, "weights for the forward", FORWARD, shards, weights, calls, gathers))
        if processes.reshard and again:  # the root is kept, because the backward begins with it
            found.append(
                Collective(ALL_GATHER, "weights for the backward", BACKWARD, shards, again, calls - 1, micro_batches)
            )
        found.append(
            Collective(REDUCE_SCATTER, GRADIENTS, BACKWARD, shards, processes.reduced_bytes * padded, calls, sums)
        )
    if processes.copies > 1:
        own = processes.reduced_bytes * padded / shards
        found.append(
            Collective(ALL_REDUCE, f"{GRADIENTS} of copies", BACKWARD, processes.copies, own, calls, sums, shards)
        )
    if shards > 1 and whole_numel:
        own = FLOAT32 * whole_numel / shards
        found.append(Collective(ALL_TO_ALL, "gradients and weights to owners", UPDATE, shards, 2 * own, 2))
        found.append(Collective(ALL_TO_ALL, "weights from owners", UPDATE, shards, own, 1))
    return found


def sent_in_step(traffic: Sequence[Collective], backend: str = NCCL) -> float:
    """Return the bytes that a process sends in a step."""
    return sum(collective.sent(backend) for collective in traffic)
