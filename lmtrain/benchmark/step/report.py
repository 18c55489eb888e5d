"""Prints what a benchmark of a step has found, and writes it as JSON."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from rich.table import Table

from lmtrain.benchmark.step.advice import sentences
from lmtrain.benchmark.step.findings import ATTENTION, FAST, PRODUCTS, Findings
from lmtrain.benchmark.step.timeline import PHASES
from lmtrain.benchmark.step.trace_summary import CATEGORIES, NOT_COMPUTE, TraceSummary
from lmtrain.benchmark.turns import median
from lmtrain.machine import write_json_with_machine
from lmtrain.run.environment import describe_environment
from lmtrain.run.identity import plain_config
from lmtrain.terminal.console import console
from lmtrain.terminal.units import counted, percent, si, si_unit

SHOWN_RATES = 8
UNKNOWN = "n/a"


def show(found: Findings) -> None:
    """Print the tables, and what they mean in a few sentences."""
    work = found.work
    console.print(
        f"{work.model}, {si(work.parameters)} parameters, {work.batch_size} × {work.block_size} tokens × "
        f"{micro_batches(work.accumulation)}; {found.machine.device}"
        + ("" if work.has_real_data else "; random tokens, because the data is not prepared")
    )
    console.print(_speed(found))
    console.print(_phases(found))
    if found.rates:
        console.print(_rates(found))
    console.print(_beside(found))
    if found.profile is not None:
        show_profile(found.profile)
    for sentence in sentences(found):
        console.print(f"• {sentence}")


def show_profile(summary: TraceSummary) -> None:
    """Print on what the profiled steps spent their time."""
    table = Table("profile: where the time goes", "ms per step", "share", title_justify="left")
    for name, seconds in sorted(summary.categories.items(), key=lambda item: -item[1]):
        table.add_row(name, milliseconds(seconds), percent(seconds / summary.seconds))
    console.print(table)
    table = Table("profile: largest operations", "kind", "ms per step", "calls per step")
    for name, category, seconds, calls in summary.operations:
        table.add_row(name if len(name) <= 60 else name[:59] + "…", category, milliseconds(seconds), f"{calls:g}")
    console.print(table)
    for name in summary.categories:
        console.print(f"  {name}: {CATEGORIES[name]}")
    console.print(
        f"  not compute ({', '.join(name for name in NOT_COMPUTE)}): {percent(summary.not_compute)} of the step"
    )


def write_json(path: Path, found: Findings, cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Write all numbers, the environment and the config to a file."""
    environment = describe_environment("", found.machine.device, plain_config(cfg))
    git = environment.pop("git") or {}
    del environment["run_id"], environment["code"]
    numbers = dataclasses.asdict(found)
    numbers["rates"] = [{**dataclasses.asdict(rate), "flops_per_second": rate.flops_per_second} for rate in found.rates]
    if found.profile is not None:
        numbers["profile"]["not_compute"] = found.profile.not_compute
    derived = {name: getattr(found, name) for name, value in vars(Findings).items() if isinstance(value, property)}
    write_json_with_machine(
        path,
        overrides=list(overrides),
        **derived,
        measured=numbers,
        advice=sentences(found),
        environment={**environment, "commit": git.get("commit"), "has_changes": bool(git.get("changed"))},
        config=plain_config(cfg),
    )


def milliseconds(seconds: float) -> str:
    """Return seconds in ms, with three significant digits or more."""
    number = 1000 * seconds
    return f"{number:,.0f}" if number >= 100 else f"{number:#.3g}".rstrip(".")


def micro_batches(number: int) -> str:
    return f"{number} micro-batch{'es' * (number != 1)}"


def _speed(found: Findings) -> Table:
    machine, rounds = found.machine, counted(len(found.rounds), "round")
    table = Table(f"a step of {micro_batches(found.micro_batches)}, median of {rounds}", "", "")
    table.add_row("step", f"{milliseconds(found.step_seconds)} ms", f"{si(found.tokens_per_second)} tokens/s")
    if found.step_over_floor is not None and found.floor_seconds is not None:
        products = median(found.rounds, PRODUCTS)
        table.add_row("floor", f"{milliseconds(found.floor_seconds)} ms", "products and attention alone")
        table.add_row("  products", f"{milliseconds(products)} ms", _flops(found.product_rate))
        if found.has_attention:
            table.add_row("  attention", f"{milliseconds(median(found.rounds, ATTENTION))} ms", "")
        table.add_row("step / floor", f"{found.step_over_floor:.3f}", "median of the ratios within a round")
    else:
        table.add_row("floor", UNKNOWN, str(found.no_floor))
    if found.mfu is None:
        table.add_row("MFU", UNKNOWN, "the FLOPs of the model can't be counted")
    else:
        source = "the fastest product here" if machine.known_peak is None else "the data sheet"
        table.add_row("MFU", percent(found.mfu), f"of {_flops(found.peak)}, {source}")
    if found.micro_batches < found.work.accumulation:
        table.add_row(
            f"step of {micro_batches(found.work.accumulation)}",
            f"{milliseconds(found.config_step_seconds)} ms",
            "calculated; tokens/s and MFU are for it",
        )
    return table


def _phases(found: Findings) -> Table:
    phases = found.phase_seconds
    total = sum(phases.values())
    table = Table("phase, from steps with timers", "ms", "share")
    for name in PHASES:
        if name in phases:
            table.add_row(name, milliseconds(phases[name]), percent(phases[name] / total))
    table.add_row("sum", milliseconds(total), f"{total / found.step_seconds:.3f} of the step without timers")
    return table


def _rates(found: Findings) -> Table:
    total = sum(rate.times * rate.seconds for rate in found.rates)
    table = Table("product", "operands", "per micro-batch", "rate", "share of products")
    for rate in found.rates[:SHOWN_RATES]:
        size = f"{rate.rows} × {rate.inner} × {rate.columns}"
        table.add_row(
            f"{rate.batch} × ({size})" if rate.batch > 1 else size,
            rate.operands,
            str(rate.times),
            _flops(rate.flops_per_second),
            percent(rate.times * rate.seconds / total),
        )
    return table


def _beside(found: Findings) -> Table:
    machine = found.machine
    table = Table("beside the step", "", "")
    table.add_row(
        "large product",
        _flops(machine.large_product),
        f"in {machine.dtype}"
        + "".join(f"; {_flops(flops)} in {dtype}" for dtype, flops in machine.other_products.items()),
    )
    table.add_row("memory bandwidth", si_unit(machine.bandwidth, "B/s"), "reading and writing in a large copy")
    table.add_row(
        "loader",
        f"{1e6 * found.loader:.0f} µs",
        f"a batch, beside the step; a plain copy of it: {1e6 * found.copy:.0f} µs",
    )
    planned = f"{found.planned_memory / 1e9:.2f} GB" if found.planned_memory is not None else UNKNOWN
    table.add_row("peak memory", f"{found.memory / 1e9:.2f} GB", f"plan predicts {planned}")
    parts = ", ".join(f"{name} {seconds:.1f} s" for name, seconds in found.startup.items())
    table.add_row("start-up", f"{sum(found.startup.values()):.1f} s", parts)
    table.add_row(
        "checkpoint",
        f"{milliseconds(found.checkpoint_stall)} ms",
        f"the loop waits; {si_unit(found.checkpoint_bytes, 'B')} on the disk after {found.checkpoint_seconds:.1f} s",
    )
    price = found.price_of_determinism
    table.add_row(
        "deterministic",
        UNKNOWN if price is None else f"{price:.3f}",
        found.no_price or f"times the step without it, {milliseconds(median(found.rounds, FAST))} ms",
    )
    return table


def _flops(flops: float | None) -> str:
    return UNKNOWN if flops is None else si_unit(flops, "FLOP/s")
