"""`python -m lmtrain benchmark loss [overrides]`: times the loss over the vocabulary, in chunks and in other ways."""

import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.table import Table

from lmtrain.benchmark.turns import WARMUP_ROUNDS, median, ratio, take_turns
from lmtrain.config.batch_size import refuse_auto
from lmtrain.config.build import raising_config_errors
from lmtrain.config.compose import compose
from lmtrain.config.preflight import check_for_plan
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import counted

if TYPE_CHECKING:
    from torch import Tensor

    from lmtrain.system import System

    Loss = Callable[[Tensor, Tensor, Tensor], Tensor]

WHOLE = "whole logits"
MEANINGS = {
    WHOLE: "F.cross_entropy(F.linear(hidden, weight), targets)",
    "N rows": "lmtrain's loss in chunks of N rows",
    "compiled": "inside torch.compile",
    "auto-chunker": "whole logits that Inductor cuts into chunks (torch 2.11 and later, CUDA)",
    "torch": "F.linear_cross_entropy with its default options (torch 2.13 and later)",
    "liger": "the kernel of the package liger-kernel, if it is installed (CUDA)",
}


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark loss",
        description="Times the loss and its gradients in the shapes and number format of a config, with their memory.",
        epilog="Example: python -m lmtrain benchmark loss model=gpt2 data.batch_size=8",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument(
        "--rows",
        nargs="+",
        type=WholeNumber(1),
        default=[512, 1024, 2048, 4096],
        help="rows of a chunk (default: 512 1024 2048 4096)",
    )
    parser.add_argument("--rounds", type=WholeNumber(1), default=11, help="measured rounds (default: 11)")
    parser.add_argument("--no-compile", action="store_true", help="leave out what has to be compiled")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    cfg, _ = check_for_plan(compose(expand_fork(options.overrides, prepares=False)), "benchmark loss")
    refuse_auto(cfg)
    vocabulary, width = (_size(cfg.model, key) for key in ("vocab_size", "d_model"))
    tokens = cfg.data.batch_size * cfg.data.block_size

    import torch

    from lmtrain.parts import build_model, build_system, work_of

    with raising_config_errors():
        system = build_system(cfg)
        with torch.device("meta"):
            system.choose(work_of(cfg, build_model(cfg)), {})  # the number format of the run
    hidden = torch.randn(tokens, width, device=system.device, requires_grad=True)
    weight = torch.nn.Parameter(torch.randn(vocabulary, width, device=system.device) * 0.02)
    targets = torch.randint(vocabulary, (tokens,), device=system.device)
    step = partial(_step, system, hidden, weight, targets)
    contenders = _contenders(system, options.rows, compiles=not options.no_compile)
    memory = {name: _peak_bytes(system, name, loss, step) for name, loss in contenders.items()}
    rounds = take_turns(contenders, options.rounds, lambda loss, _: step(loss), warmup=WARMUP_ROUNDS)
    console.print(
        f"{tokens:,} tokens, {vocabulary:,} ids, width {width}, {system.device.type}, {system.dtype_name}; "
        f"medians of {counted(options.rounds, 'round')}"
    )
    table = Table("loss", "ms", "ratio to whole", "memory")
    for name in contenders:
        used = memory[name]
        table.add_row(
            name,
            f"{1000 * median(rounds, name):.1f}",
            f"{ratio(rounds, name, WHOLE):.3f}",
            "–" if used is None else f"{used / 1e6:.0f} MB",
        )
    console.print(table)
    for name, meaning in MEANINGS.items():
        if any(name.removeprefix("N") in shown for shown in contenders):
            console.print(f"  {name}: {meaning}")
    if options.json:
        write_json_with_machine(options.json, overrides=options.overrides, seconds=rounds, bytes=memory)
    return 0


def _size(model: Any, key: str) -> int:
    value = model.get(key)
    if value is None:
        raise ConfigError(f"model.{key}={value}: benchmark loss needs a number, for example model=llama_50m")
    return int(value)


def _contenders(system: "System", rows: Sequence[int], *, compiles: bool) -> "dict[str, Loss]":
    """Return the losses that this machine can compute."""
    import torch
    import torch.nn.functional as F

    from lmtrain.model.loss import linear_cross_entropy

    def whole(hidden: "Tensor", weight: "Tensor", targets: "Tensor") -> "Tensor":
        return F.cross_entropy(F.linear(hidden, weight), targets)

    found: dict[str, Loss] = {WHOLE: whole}
    found |= {f"{count} rows": partial(linear_cross_entropy, rows=count) for count in rows}
    on_cuda = system.device.type == "cuda"
    if hasattr(F, "linear_cross_entropy"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["torch"] = partial(F.linear_cross_entropy, options=options)
    if compiles:
        found[f"{WHOLE}, compiled"] = torch.compile(whole)
        for count in rows:
            found[f"{count} rows, compiled"] = torch.compile(partial(linear_cross_entropy, rows=count))
        if on_cuda and "auto_chunker.enable" in torch._inductor.list_options():
            found["auto-chunker"] = torch.compile(whole, options={"auto_chunker.enable": True})
    if on_cuda and importlib.util.find_spec("liger_kernel"):
        from liger_kernel.transformers import (  # type: ignore[import-not-found,unused-ignore]
            LigerFusedLinearCrossEntropyLoss,
        )

        liger = LigerFusedLinearCrossEntropyLoss()
        found["liger"] = lambda hidden, weight, targets: liger(weight, hidden, targets)
    return found


def _step(system: "System", hidden: "Tensor", weight: "Tensor", targets: "Tensor", loss: "Loss") -> float:
    """Compute a loss and its gradients; return the seconds."""
    hidden.grad = weight.grad = None
    system.synchronize()
    started = time.perf_counter()
    with system.autocast():
        value = loss(hidden, weight, targets)
    value.backward()  # type: ignore[no-untyped-call]
    system.synchronize()
    return time.perf_counter() - started


def _peak_bytes(system: "System", name: str, loss: "Loss", step: "Callable[[Loss], float]") -> int | None:
    """Return the peak memory of a step beside its inputs; None for compiled losses on a CPU."""
    import torch

    step(loss)  # compiles it
    if system.device.type == "cuda":
        before = torch.cuda.memory_allocated(system.device)
        torch.cuda.reset_peak_memory_stats(system.device)
        step(loss)
        return int(torch.cuda.max_memory_allocated(system.device) - before)
    if name.endswith("compiled"):
        return None
    from lmtrain.plan.memory import MemoryLedger

    with MemoryLedger(1) as ledger:
        ledger.start()
        step(loss)
    return int(ledger.peak.total())
