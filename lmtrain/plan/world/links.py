"""The links between processes, and the time that a message needs on them."""

import math
from dataclasses import dataclass

from lmtrain.plan.world.traffic import ALL_REDUCE, ALL_TO_ALL, ROUNDS, Collective


@dataclass(frozen=True)
class Links:
    """The links of a cluster. The defaults are those of nodes with eight H100, NVLink, and a 400 Gbit/s port a GPU.

    Attributes:
        node_size: GPUs in a node.
        gb_per_s: GB/s that a GPU sends to others in its node: what a ring of NCCL reaches of NVLink's 450.
        node_gb_per_s: GB/s that a GPU sends to other nodes: what a message reaches of 50.
        latency_us: Microseconds from GPU to GPU in a node, and
        node_latency_us: to another node: those of NCCL's own model for a ring with its protocol LL128.
    """

    node_size: int = 8
    gb_per_s: float = 350.0
    node_gb_per_s: float = 45.0
    latency_us: float = 1.9
    node_latency_us: float = 4.0

    def seconds(self, collective: Collective) -> float:
        """Return the time of a collective in a step, if nothing else is sent.

        A message takes the time for its bytes on the slowest link, and the latency of each step of a ring, or for an
        all-reduce of a tree if that has less. All GPUs of a group in a node send to the next node at the same time,
        each by its own port, so they share what the group sends.

        Source: the model with which NCCL chooses its algorithms (`src/graph/tuning.cc`).
        """
        n, here = collective.ranks, self._in_a_node(collective)
        nodes = -(-n // here)
        inside, outside = 1e-6 * self.latency_us, 1e-6 * self.node_latency_us
        if collective.kind == ALL_TO_ALL:
            share = (here - 1) / n, (n - here) / n
            speeds = 1e9 * self.gb_per_s, 1e9 * self.node_gb_per_s
            moving = collective.size * max(part / speed for part, speed in zip(share, speeds, strict=True))
            latency = (here - 1) * inside + (n - here) * outside
        else:
            speed = self.gb_per_s if nodes == 1 else min(self.gb_per_s, here * self.node_gb_per_s)
            moving = ROUNDS[collective.kind] * (n - 1) / n * collective.size / (1e9 * speed)
            latency = ROUNDS[collective.kind] * ((n - nodes) * inside + (nodes - 1) * outside)
            if collective.kind == ALL_REDUCE:
                latency = min(latency, 2 * ((here - 1) * inside + math.ceil(math.log2(nodes)) * outside))
        return collective.times * (moving + collective.calls * latency)

    def _in_a_node(self, collective: Collective) -> int:
        """Return how many processes of a group are in a node."""
        return min(collective.ranks, max(1, self.node_size // collective.stride))
