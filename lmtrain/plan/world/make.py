"""Makes the plan of a run of many processes from its config."""

from dataclasses import replace
from typing import Any

from torch import nn

from lmtrain.parts import whole_tensors
from lmtrain.plan.facts import RunFacts
from lmtrain.plan.hardware import Workload
from lmtrain.plan.memory import StepCost
from lmtrain.plan.world.estimate import estimates
from lmtrain.plan.world.links import Links
from lmtrain.plan.world.memory import memory_of_process
from lmtrain.plan.world.plan import WorldPlan
from lmtrain.plan.world.processes import DDP, FSDP, Processes
from lmtrain.plan.world.remarks import faster_shards, fits_nowhere
from lmtrain.plan.world.traffic import traffic_of_step
from lmtrain.plan.world.units import Units, WholeTensors, units_of


def world_of(
    cfg: Any,
    processes: Processes,
    links: Links,
    model: nn.Module,
    step: StepCost | None,
    facts: RunFacts,
    run_flops: float,
    *,
    no_memory: str | None,
    mfu: float | None,
    price: float | None,
) -> WorldPlan:
    """Plan what each of many processes needs and sends, and how fast they are together.

    Args:
        cfg: The checked config, with micro-batches that can be dealt out to the processes.
        processes: The processes.
        links: The links between them.
        model: The model; its weights are not read.
        step: The cost of a step on CUDA with a process's micro-batches; None if it cannot be simulated.
        facts: What is known about the run.
        run_flops: FLOPs of the run, of all processes.
        no_memory: The reason why `step` is None.
        mfu: A share of a GPU's peak speed at which it computes; None estimates it.
        price: Dollars per hour of a GPU; None takes the known prices.
    """
    units = units_of(model)
    sizes = sizes_of_whole(cfg, model) if processes.kind == FSDP else {}
    micro_batches = facts.mean_step_tokens / facts.micro_batch_tokens / processes.size
    work = Workload(run_flops / processes.size, facts.steps, micro_batches, step)

    def planned(processes: Processes) -> WorldPlan:
        whole = WholeTensors.of(sizes, processes.shards)
        traffic = traffic_of_step(processes, units, micro_batches, whole.numel)
        memory = memory_of_process(step, processes, units, 2 if micro_batches > 1 else 1, whole) if step else None
        found = estimates(
            work,
            sum(memory.values()) if memory else 0,
            traffic,
            processes,
            links,
            update_share=update_share(processes, units, whole),
            recomputes=facts.recompute == "layer",
            mfu=mfu,
            dollars_per_hour=price,
        )
        return WorldPlan(
            processes,
            links,
            cfg.data.batch_size,
            micro_batches,
            memory,
            no_memory,
            traffic,
            found if run_flops else [],
        )

    world = planned(processes)
    found = [remark for remark in (fits_nowhere(world), faster_shards(world, planned)) if remark is not None]
    return replace(world, remarks=found)


def sizes_of_whole(cfg: Any, model: nn.Module) -> dict[str, int]:
    """Return the numbers in each tensor that the optimizer needs as a whole, by name."""
    names = whole_tensors(cfg, model)
    return {name: param.numel() for name, param in model.named_parameters() if name in names}


def update_share(processes: Processes, units: Units, whole: WholeTensors) -> float:
    """Return the share of the update that the busiest process computes, as if each number took the same time."""
    if processes.kind == DDP:
        return 1.0
    rows = units.local_numel(processes.shards) * (1 - whole.numel / units.numel)
    return (rows + whole.most) / units.numel
