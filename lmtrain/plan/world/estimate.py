"""The time of a step of many processes: what is computed, what is sent, and what of that is not hidden."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from lmtrain.machine import GPUS, Gpu
from lmtrain.plan.hardware import COMPUTE, LAUNCHES, MEMORY, OPTIMIZER, USABLE, Workload, seconds_by_kind
from lmtrain.plan.memory import CUDA_CONTEXT
from lmtrain.plan.world.links import Links
from lmtrain.plan.world.processes import Processes
from lmtrain.plan.world.traffic import ALL_GATHER, BACKWARD, FORWARD, UPDATE, Collective

# GPUs of nodes that have fast links between them. The defaults of `Links` are those of the second and third.
LINKED, TYPICAL = ("B200", "H200", "H100", "A100"), "H100"
FORWARD_SHARE, RECOMPUTED_SHARE = 1 / 3, 1 / 4  # of the work; the second where the backward computes layers again


@dataclass(frozen=True)
class Computing:
    """The seconds that a step computes in one process, without any messages."""

    forward: float  # of one micro-batch
    backward: float
    update: float  # if this process had to update all parameters
    micro_batches: float

    @property
    def whole(self) -> float:
        return self.micro_batches * (self.forward + self.backward) + self.update


@dataclass(frozen=True)
class StepTime:
    """The seconds of a step of many processes: computing, updating, and waiting for messages.

    `sending` is the time of all messages if nothing were hidden; `whole_alone` is the time of the same batch on one GPU
    that has enough memory.
    """

    computing: float
    updating: float
    waiting: float
    sending: float
    whole_alone: float
    processes: int

    @property
    def seconds(self) -> float:
        return self.computing + self.updating + self.waiting

    @property
    def efficiency(self) -> float:
        """Return the speed over that of as many GPUs which would each train alone."""
        return self.whole_alone / self.processes / self.seconds

    @property
    def hidden(self) -> float:
        """Return the share of the time of messages during which the GPU computes."""
        return 1 - self.waiting / self.sending if self.sending else 1.0


def step_time(
    computing: Computing, traffic: Sequence[Collective], processes: Processes, links: Links, update_share: float
) -> StepTime:
    """Return the time of a step; `update_share` is the share of the update that the busiest process computes.

    What can be hidden: with DDP, all buckets but the last during the last backward. With FSDP, the weights of a layer
    while the one before is computed, and gradients while the backward goes on; the first two messages of a forward,
    the first of a backward and the last gradients have nothing to hide behind. In the update, nothing is hidden.
    Messages at the same time share the links.
    """
    seconds = {id(collective): links.seconds(collective) for collective in traffic}

    def of(during: str, gathers: bool) -> float:
        chosen = [each for each in traffic if each.during == during and (each.kind == ALL_GATHER) == gathers]
        return sum(seconds[id(each)] for each in chosen)

    count = computing.micro_batches
    calls = max((each.calls for each in traffic if each.during != UPDATE), default=1)
    gathers = max((each.times for each in traffic if each.during == FORWARD), default=count)
    sums = max((each.times for each in traffic if each.during == BACKWARD and each.kind != ALL_GATHER), default=1.0)
    forward, backward = of(FORWARD, True) / gathers, of(BACKWARD, True) / count  # of one micro-batch
    gradients, update = of(BACKWARD, False) / sums, of(UPDATE, False)
    waiting = gathers * _not_hidden(forward, min(1.0, 2 / calls), computing.forward)
    waiting += (count - sums) * _not_hidden(backward, 1 / calls, computing.backward)
    waiting += sums * _not_hidden(backward + gradients, 1 / calls, computing.backward)
    return StepTime(
        count * (computing.forward + computing.backward),
        computing.update * update_share,
        waiting + update,
        sum(seconds.values()),
        processes.size * count * (computing.forward + computing.backward) + computing.update,
        processes.size,
    )


def _not_hidden(seconds: float, bare_share: float, behind: float) -> float:
    """Return how long messages are waited for, of which a share has nothing to hide behind."""
    return bare_share * seconds + max(0.0, (1 - bare_share) * seconds - behind)


@dataclass(frozen=True)
class WorldEstimate:
    """An estimate of the run on many GPUs of one kind."""

    gpu: Gpu
    fits: bool
    step: StepTime
    seconds: float  # of the run
    dollars: float | None
    mfu: float


def estimates(
    work: Workload,
    peak_bytes: int,
    traffic: Sequence[Collective],
    processes: Processes,
    links: Links,
    *,
    update_share: float,
    recomputes: bool,
    mfu: float | None = None,
    dollars_per_hour: float | None = None,
) -> list[WorldEstimate]:
    """Return an estimate for each kind of GPU that comes in nodes with fast links.

    Args:
        work: The work of one process in the run.
        peak_bytes: The memory that it needs.
        traffic: What it sends in a step.
        processes: The processes.
        links: The links between them.
        update_share: The share of the update that the busiest process computes.
        recomputes: Whether the backward computes layers again.
        mfu: A share of a GPU's peak speed at which it computes; None estimates it.
        dollars_per_hour: A price of one GPU that replaces the known prices.
    """
    found = []
    for gpu in (gpu for gpu in GPUS if gpu.name in LINKED):
        step = step_time(computing_of(work, gpu, mfu, recomputes), traffic, processes, links, update_share)
        price = gpu.dollars_per_hour if dollars_per_hour is None else dollars_per_hour
        seconds = work.steps * step.seconds
        found.append(
            WorldEstimate(
                gpu,
                peak_bytes + CUDA_CONTEXT <= USABLE * gpu.memory_gb * 1e9,
                step,
                seconds,
                None if price is None else price * processes.size * seconds / 3600,
                work.flops / (gpu.peak_flops * seconds) if seconds else 0.0,
            )
        )
    return found


def computing_of(work: Workload, gpu: Gpu, mfu: float | None, recomputes: bool) -> Computing:
    """Return the seconds of a step on a GPU, from those of the whole run."""
    spent: Mapping[str, float] = seconds_by_kind(work, gpu, mfu)
    micro_batches, updates = spent[COMPUTE] + spent.get(MEMORY, 0.0), spent.get(OPTIMIZER, 0.0)
    micro_batches = max(micro_batches, spent[LAUNCHES] - updates)  # a GPU waits for its kernels to be started
    one = micro_batches / (work.steps * work.micro_batches)
    forward = RECOMPUTED_SHARE if recomputes else FORWARD_SHARE
    return Computing(forward * one, (1 - forward) * one, updates / work.steps, work.micro_batches)
