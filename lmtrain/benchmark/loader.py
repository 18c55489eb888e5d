"""`python -m lmtrain benchmark loader [overrides]`: times the loading of batches."""

import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lmtrain.benchmark.turns import WARMUP_ROUNDS, median, ratio, take_turns
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.config.token_files import ensure_tokens
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file

if TYPE_CHECKING:
    from lmtrain.data.loader import TokenLoader

CONTENDERS = {
    "loader": "the loader of the config",
    "rows": "torch.stack of per-row slices of a memmap, as in most training scripts",
    "copy": "a clone of a batch that is already in the CPU's cache",
}


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark loader",
        description="Times batches with a warm page cache on one thread, and measures how memory grows over many of "
        "them.",
        epilog="Without overrides it uses random tokens. To use your data: data=tokens data.path=data/books",
    )
    parser.add_argument("overrides", nargs="*", help="config overrides, as for training")
    parser.add_argument(
        "--shapes", nargs="+", default=["16x512", "64x1024"], help="BATCHxBLOCK (default: 16x512 64x1024)"
    )
    parser.add_argument("--rounds", type=WholeNumber(1), default=21, help="measured rounds (default: 21)")
    parser.add_argument("--calls", type=WholeNumber(1), default=100, help="batches per round (default: 100)")
    parser.add_argument(
        "--batches", type=WholeNumber(1), default=100_000, help="batches for the memory growth (default: 100,000)"
    )
    parser.add_argument(
        "--tokens", type=WholeNumber(2000), default=100_000_000, help="number of random tokens (default: 10⁸)"
    )
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    shapes = [_shape(text) for text in options.shapes]

    import torch

    torch.set_num_threads(1)  # in training, one thread makes batches during the step
    results = {}
    with _overrides(options.overrides, options.tokens) as overrides:
        cfg = check(compose(overrides), groups=["data", "prepare"])
        with raising_config_errors():
            ensure_tokens(cfg)
        table = Table("batch", *(f"{name} µs" for name in CONTENDERS), "rows / loader", "loader / copy", "RSS growth")
        for batch_size, block_size in shapes:
            node = {**cfg.data, "batch_size": batch_size, "block_size": block_size}
            with raising_config_errors():
                loader = build(node, split="train", seed=cfg.get("seed", 0))
            contenders = _contenders(loader)
            measure = partial(_seconds, calls=options.calls)
            rounds = take_turns(contenders, options.rounds, measure, warmup=WARMUP_ROUNDS)
            growth = _growth_mb(loader.batch, options.batches)
            table.add_row(
                f"{batch_size} × {block_size}",
                *(f"{1e6 * median(rounds, name):.1f}" for name in CONTENDERS),
                f"{ratio(rounds, 'rows', 'loader'):.1f}",
                f"{ratio(rounds, 'loader', 'copy'):.2f}",
                f"{growth:+.1f} MB",
            )
            results[f"{batch_size}x{block_size}"] = {"seconds": rounds, "rss_growth_mb": growth}
    console.print(
        f"medians of {options.rounds} rounds of {options.calls} batches, on one thread; ratios are taken within each "
        f"round; RSS growth is over {options.batches:,} batches"
    )
    console.print(table)
    for name, meaning in CONTENDERS.items():
        console.print(f"  {name}: {meaning}")
    if options.json:
        write_json_with_machine(options.json, overrides=options.overrides, batches=options.batches, shapes=results)
    return 0


def _shape(text: str) -> tuple[int, int]:
    batch_size, _, block_size = text.partition("x")
    if not (batch_size.isdecimal() and block_size.isdecimal() and int(batch_size) and int(block_size)):
        raise ConfigError(f"--shapes {text}: not a shape; give BATCHxBLOCK, such as 16x512")
    return int(batch_size), int(block_size)


@contextmanager
def _overrides(given: Sequence[str], tokens: int) -> Iterator[Sequence[str]]:
    """Yield the user's overrides or, without any, overrides for a temporary folder of random tokens."""
    if given:
        yield given
        return
    import numpy as np

    with tempfile.TemporaryDirectory() as folder:
        np.random.default_rng(0).integers(0, 50_000, tokens, dtype=np.uint16).tofile(Path(folder) / "train.bin")
        yield ["data=tokens", f"data.path={folder}", "model.vocab_size=50000"]


def _contenders(loader: "TokenLoader") -> dict[str, Callable[[int], object]]:
    import numpy as np
    import torch

    batch_size, block_size = loader.batch_size, loader.block_size
    file = loader.samples.tokens.files[0]
    tokens = np.memmap(file.path, file.tokens.dtype, mode="r", offset=file.offset)
    generator = np.random.default_rng(0)
    x, y = loader.batch(0)

    def rows(index: int) -> object:
        starts = generator.integers(0, len(tokens) - block_size, batch_size)
        inputs = torch.stack([torch.from_numpy(tokens[i : i + block_size].astype(np.int64)) for i in starts])
        targets = torch.stack([torch.from_numpy(tokens[i + 1 : i + 1 + block_size].astype(np.int64)) for i in starts])
        return inputs, targets

    return {"loader": loader.batch, "rows": rows, "copy": lambda index: (x.clone(), y.clone())}


def _seconds(call: Callable[[int], object], number: int, calls: int) -> float:
    """Return the seconds per call; each round reads different batches."""
    started = time.perf_counter()
    for index in range(number * calls, (number + 1) * calls):
        call(index)
    return (time.perf_counter() - started) / calls


def _growth_mb(batch: Callable[[int], object], batches: int) -> float:
    """Return the growth of the peak resident memory over many batches, after a tenth as many for warmup."""
    for index in range(batches // 10):
        batch(index)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for index in range(batches // 10, batches + batches // 10):
        batch(index)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
