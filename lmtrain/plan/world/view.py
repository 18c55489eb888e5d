"""Prints the plan of a run of many processes."""

from lmtrain.machine import PRICED
from lmtrain.plan.world.memory import KINDS_OF_A_PROCESS, ON_THE_WAY
from lmtrain.plan.world.plan import WorldPlan
from lmtrain.plan.world.processes import FSDP
from lmtrain.terminal.tables import (
    as_bytes,
    as_dollars,
    as_milliseconds,
    as_time,
    new_table,
    print_heading,
    print_line,
    print_rows,
    print_table,
)
from lmtrain.terminal.units import counted, percent, si


def show_world(world: WorldPlan, *, mfu: float | None) -> None:
    """Print memory and traffic of a process, and time and cost of the run on kinds of GPUs."""
    processes = world.processes
    print_heading(processes.describe())
    print_rows([("a process", f"{world.micro_batches:,.4g} × {counted(world.batch_size, 'sequence')} in a step")])
    _print_memory(world)
    _print_traffic(world)
    _print_gpus(world, mfu)


def _print_memory(world: WorldPlan) -> None:
    print_heading("memory of a process, at the peak of a step on a GPU in bfloat16")
    if world.memory is None:
        print_line(f"  unknown, because {world.no_memory}")
        return
    table = new_table("", "a process")
    for kind, size in world.memory.items():
        table.add_row(KINDS_OF_A_PROCESS[kind], as_bytes(size))
    table.add_row("peak of an eager step", as_bytes(world.memory_bytes or 0), style="bold")
    print_table(table)
    processes = world.processes
    if ON_THE_WAY in world.memory and world.micro_batches > 1 and not processes.reduces_each:
        print_line(
            "  gradients on their way: also a sum over micro-batches; parallel.reduce_each_micro_batch=true needs less"
        )
    if processes.kind == FSDP and "casts" in world.memory:
        print_line("  weights in 16 bits: kept until the backward; with parallel.param_dtype=bfloat16 there are none")


def _print_traffic(world: WorldPlan) -> None:
    print_heading("what a process sends in a step")
    table = new_table("", "processes", "bytes", "times", "sent", "beside the")
    for each in world.traffic:
        table.add_row(
            f"{each.kind} of {each.purpose}",
            f"{each.ranks:,}",
            as_bytes(each.size),
            f"{each.times:,.4g}",
            as_bytes(each.sent()),
            each.during,
        )
    table.add_row("in all", "", "", "", as_bytes(world.sent), "", style="bold")
    print_table(table)


def _print_gpus(world: WorldPlan, mfu: float | None) -> None:
    print_heading(f"on {world.processes.size:,} GPUs")
    if not world.estimates:
        print_line("  unknown, because the model has no matrix products")
        return
    table = new_table("", "memory", "fits", "a step", "waits", "efficiency", "MFU", "time", "cost")
    for each in world.estimates:
        fits = "?" if world.memory is None else "yes" if each.fits else "no"
        table.add_row(
            each.gpu.name,
            f"{each.gpu.memory_gb:g}GB",
            fits,
            as_milliseconds(each.step.seconds),
            as_milliseconds(each.step.waiting),
            percent(each.step.efficiency),
            percent(each.mfu),
            as_time(each.seconds),
            "" if each.dollars is None else as_dollars(each.dollars),
        )
    print_table(table)
    links = world.links
    print_line("  waits: for messages that no computing hides")
    print_line("  efficiency: the speed over that of as many GPUs that would each train alone, with enough memory")
    print_line(
        f"  links: {si(links.gb_per_s)} GB/s in a node of {links.node_size} GPUs (--link-gb-per-s, --node-size), "
        f"{si(links.node_gb_per_s)} GB/s a GPU to other nodes (--node-link-gb-per-s), {links.latency_us:g} and "
        f"{links.node_latency_us:g} µs (--link-us, --node-link-us)"
    )
    how = "from peak speed and memory bandwidth" if mfu is None else f"at {mfu:.0%} of the peak speed"
    print_line(f"  computing is estimated {how} (--mfu); prices from {PRICED} for one GPU on demand (--price)")
