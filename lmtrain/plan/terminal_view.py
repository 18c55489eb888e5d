"""Prints a plan."""

import textwrap
from collections.abc import Sequence

from lmtrain.machine import PRICED
from lmtrain.optimizer.group_table import group_table
from lmtrain.plan import schedule_picture
from lmtrain.plan.hardware import BOUND_BY, KERNEL_S, LAUNCHES, GpuEstimate
from lmtrain.plan.memory import KINDS
from lmtrain.plan.plan import Plan
from lmtrain.plan.sweep_plan import GpuTotal
from lmtrain.plan.world.view import show_world
from lmtrain.terminal.tables import (
    as_bytes,
    as_dollars,
    as_time,
    new_table,
    print_heading,
    print_line,
    print_rows,
    print_table,
)
from lmtrain.terminal.units import counted, duration, percent, si

NO_GROUPS = "unknown, because the optimizer cannot be built without data"
NOT_SIMULATED = " (if the optimizer keeps as much as AdamW)"
OPTIMAL = 20  # tokens per parameter (Hoffmann et al. 2022)


def show_plan(plan: Plan) -> None:
    """Print the plan: model, data, parameter groups, memory, time, disk, learning rate, and remarks."""
    print_line(f"plan of {plan.name}: {plan.model}; {plan.machine}", style="bold")
    print_heading("model and data")
    print_rows(model_and_data(plan))
    print_heading("parameter groups")
    print_line(textwrap.indent(group_table(plan.groups) if plan.groups else NO_GROUPS, "  "))
    if plan.world is None:
        print_heading("memory, at the peak of a step")
        _print_memory(plan)
    print_heading("time and disk" if plan.world is None else "disk")
    print_rows(time_and_disk(plan))
    if plan.world is not None:
        show_world(plan.world, mfu=plan.mfu)
    else:
        print_heading("on a GPU")
        _print_gpus(plan)
    print_heading("learning rate")
    print_line(schedule_picture.draw_rates(list(plan.steps), list(plan.rates)))
    print_heading("remarks" if plan.remarks else "no remarks")
    for remark in plan.remarks:
        print_line(f"! {remark}", style="yellow")


def model_and_data(plan: Plan) -> list[tuple[str, str]]:
    facts = plan.facts
    smallest, largest = facts.range_of_step_tokens
    parts = ", ".join(f"{part} {si(count)}" for part, count in plan.parts.items())
    if plan.missing:
        way_out = (
            " yet; python -m lmtrain prepare makes them, with the same overrides"
            if plan.has_recipe
            else ", and this choice of data has no recipe to make them"
        )
        epochs = f"unknown: {', '.join(plan.missing)} has no token files{way_out}"
    else:
        epochs = ", ".join(f"{seen:.3g} of {name}" for name, seen in facts.epochs.items())
        epochs += " (including the data before the fork, if data and order are the same)" * bool(plan.fork)
    cuda = ""
    if plan.cuda_step_flops and plan.cuda_step_flops > 1.001 * plan.step_flops:
        more = plan.cuda_step_flops / plan.step_flops - 1
        layers = " and layers are recomputed" if facts.recompute == "layer" else ""
        cuda = f"; on CUDA {more:.1%} more, because fused attention computes its scores twice{layers}"
    return [
        ("parameters", f"{facts.parameters:,}: {parts}"),
        ("step", f"{smallest:,} tokens" if smallest == largest else f"{smallest:,} to {largest:,} tokens"),
        ("run", _steps_in_words(plan)),
        ("epochs", epochs),
        (
            "tokens per parameter",
            f"{facts.tokens_per_parameter:.3g}; {OPTIMAL} are compute-optimal{_optimal(plan)}",
        ),
        ("FLOPs", f"{si(plan.step_flops)} per step, {si(plan.run_flops)} in total ({plan.flops_from}{cuda})"),
    ]


def _steps_in_words(plan: Plan) -> str:
    facts = plan.facts
    steps = f"{counted(facts.steps, 'step')} = {si(facts.tokens)} tokens"
    if plan.fork is None:
        return steps
    origin = f"step {facts.first_step:,} of {plan.fork} ({si(facts.tokens_before)} tokens)"
    return f"{steps}, from {origin} to {facts.max_steps:,}"


def _optimal(plan: Plan) -> str:
    facts = plan.facts
    steps = facts.first_step + facts.steps_for(OPTIMAL * facts.parameters - facts.tokens_before)
    return " (Hoffmann et al. 2022)" + (f": {steps:,.0f} steps" if steps > facts.first_step + 0.5 else "")


def _print_memory(plan: Plan) -> None:
    if plan.here is None:
        print_line(f"  unknown, because {plan.no_memory}")
        return
    # A second column is for CUDA, because users may plan on a machine without a GPU.
    columns = {plan.machine.partition(" ")[0]: plan.here}
    if plan.on_cuda is not None and plan.on_cuda is not plan.here:
        columns["a GPU, bfloat16"] = plan.on_cuda
    table = new_table("", *columns)
    for kind, meaning in KINDS.items():
        sizes = [step.peak.get(kind, 0) for step in columns.values()]
        if any(sizes) or kind == "gradients":
            table.add_row(meaning, *(as_bytes(size) if size else "–" for size in sizes))
    table.add_row("peak of an eager step", *(as_bytes(step.step_bytes) for step in columns.values()), style="bold")
    if any(step.evaluation for step in columns.values()):
        evaluations = (as_bytes(step.evaluation_bytes) for step in columns.values())
        table.add_row("peak of an evaluation or checkpoint", *evaluations, style="bold")
    for meaning, size in plan.beside.items():
        table.add_row(meaning, as_bytes(size))
    print_table(table)
    if any(not step.peak.get("gradients") for step in columns.values()):
        print_line("  gradients –: the peak is at the logits, before there are gradients")
    print_line("  a compiled step needs less memory, because fused operations keep fewer tensors")
    facts = plan.facts
    if facts.memory_needed is not None and facts.memory_free is not None:
        fits = "fits" if facts.memory_needed <= facts.memory_free else "does not fit"
        print_line(f"  the total of {as_bytes(facts.memory_needed)} {fits}: {as_bytes(facts.memory_free)} are free")
    if plan.measured:
        whose = "tensors" if facts.device == "cuda" else "the process"
        print_line(f"  measured: {as_bytes(plan.measured.peak_bytes)} at most ({whose})")


def time_and_disk(plan: Plan) -> list[tuple[str, str]]:
    facts = plan.facts
    rows = []
    if facts.step_seconds is None and plan.world is None:
        rows.append(("here", "unknown, because the model has no matrix products; --measure runs real steps"))
    if facts.step_seconds is not None and facts.seconds is not None:
        source = (
            f"measured, median of {counted(plan.measured.steps, 'step')}"
            if plan.measured
            else "estimated from one matrix product; --measure runs real steps"
        )
        step = duration(facts.step_seconds) if facts.step_seconds >= 10 else f"{1000 * facts.step_seconds:,.0f} ms"
        speed = f"{step} per step, {si(facts.mean_step_tokens / facts.step_seconds)} tokens/s"
        cost = "" if plan.dollars is None else f" and {as_dollars(plan.dollars)}"
        rows.append(("here", f"{as_time(facts.seconds)}{cost}, without evaluations: {speed} ({source})"))
    if facts.checkpoint_bytes is not None and facts.disk_needed is not None and facts.disk_free is not None:
        rows.append(
            (
                "checkpoints",
                f"{plan.checkpoints} × {as_bytes(facts.checkpoint_bytes)} = {as_bytes(facts.disk_needed)}; "
                f"{as_bytes(facts.disk_free)} are free" + NOT_SIMULATED * (plan.here is None and plan.on_cuda is None),
            )
        )
    return rows


def _print_gpus(plan: Plan) -> None:
    if not plan.run_flops:
        print_line("  unknown, because the model has no matrix products")
        return
    print_gpu_table(plan.gpu_estimates, mfu=plan.mfu)


def print_gpu_table(estimates: Sequence[GpuEstimate | GpuTotal], *, mfu: float | None) -> None:
    """Print a row for each GPU, and how the estimates were made; `mfu` is the requested one, if any."""
    shares = any(isinstance(estimate, GpuEstimate) for estimate in estimates)
    table = new_table("", "memory", "fits", "time", "cost", *(["MFU"] if shares else []), "bound by")
    for estimate in estimates:
        fits = {None: "?", True: "yes", False: "no"}[estimate.fits]
        dtype = "" if estimate.gpu.bfloat16 else " (float16)"
        table.add_row(
            f"{estimate.gpu.name}{dtype}",
            f"{estimate.gpu.memory_gb:g}GB",
            fits,
            as_time(estimate.seconds),
            "" if estimate.dollars is None else as_dollars(estimate.dollars),
            *([percent(estimate.mfu)] if isinstance(estimate, GpuEstimate) else []),
            estimate.bound_by,
        )
    print_table(table)
    for kind in dict.fromkeys(estimate.bound_by for estimate in estimates):
        if mfu is None or kind == LAUNCHES:
            print_line(f"  {kind}: {BOUND_BY[kind]}")
    how = (
        "from each GPU's 16-bit peak speed and memory bandwidth (--mfu sets a share of the peak instead)"
        if mfu is None
        else f"at {mfu:.0%} of the 16-bit peak speed (--mfu)"
    )
    print_line(
        f"  estimated {how}, or from {1e6 * KERNEL_S:g} µs per kernel if that is longer; prices from {PRICED} for one "
        "GPU on demand (--price)"
    )
