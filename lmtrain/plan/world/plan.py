"""The plan of a run of many processes."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lmtrain.plan.world.estimate import WorldEstimate
from lmtrain.plan.world.links import Links
from lmtrain.plan.world.processes import Processes
from lmtrain.plan.world.traffic import NCCL, Collective, sent_in_step


@dataclass(frozen=True)
class WorldPlan:
    """What each of many processes needs and sends, and how fast they are together.

    Attributes:
        processes: The processes.
        links: The links between them.
        batch_size: Sequences of a micro-batch.
        micro_batches: Micro-batches of a process in a step, a mean over the run.
        memory: Bytes of a process at the peak of a step on CUDA in 16 bits, by kind; None if unknown.
        no_memory: The reason why it is unknown, after "because".
        traffic: What a process sends in a step.
        estimates: Time and cost on kinds of GPUs.
        remarks: Likely mistakes.
    """

    processes: Processes
    links: Links
    batch_size: int
    micro_batches: float
    memory: Mapping[str, int] | None
    no_memory: str | None
    traffic: Sequence[Collective]
    estimates: Sequence[WorldEstimate]
    remarks: Sequence[str] = ()

    @property
    def memory_bytes(self) -> int | None:
        return None if self.memory is None else sum(self.memory.values())

    @property
    def sent(self) -> float:
        """Return the bytes that a process sends in a step."""
        return sent_in_step(self.traffic, NCCL)

    def to_dict(self) -> dict[str, Any]:
        """Return the plan as plain values for JSON, with units in the keys."""
        return {
            "size": self.processes.size,
            "kind": self.processes.kind,
            "shards": self.processes.shards,
            "copies": self.processes.copies,
            "batch_size": self.batch_size,
            "micro_batches": self.micro_batches,
            "links": asdict(self.links),
            "memory_bytes": None if self.memory is None else {**self.memory, "peak": self.memory_bytes},
            "memory_unknown_as": self.no_memory,
            "traffic": [collective.to_dict() for collective in self.traffic],
            "sent_bytes_per_step": self.sent,
            "gpu_models": [
                {
                    "name": each.gpu.name,
                    "fits": each.fits,
                    "step_seconds": each.step.seconds,
                    "computing_seconds": each.step.computing,
                    "updating_seconds": each.step.updating,
                    "sending_seconds": each.step.sending,
                    "waiting_seconds": each.step.waiting,
                    "hidden": each.step.hidden,
                    "efficiency": each.step.efficiency,
                    "seconds": each.seconds,
                    "dollars": each.dollars,
                    "mfu": each.mfu,
                }
                for each in self.estimates
            ],
        }
