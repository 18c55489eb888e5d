"""`python -m lmtrain benchmark prepare [overrides]`: times `prepare` against the tokenizer alone."""

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from lmtrain.benchmark.turns import median, ratio, take_turns
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.errors import ConfigError
from lmtrain.machine import write_json_with_machine
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import si

if TYPE_CHECKING:
    from lmtrain.data.prepare import Recipe

CONTENDERS = {
    "prepare": "all of prepare: checking and reading the text, encoding it, and writing token files to disk",
    "tokenizer": "Tokenizer.encode_batch of the same text in memory, on all cores, without keeping the result",
}
SEPARATOR = "\n<|a document ends|>\n"
BATCH_CHARS = 16 << 20  # per call of encode_batch, which fits well into memory


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain benchmark prepare",
        description="Times prepare with a trained tokenizer against that tokenizer alone; they take turns.",
        epilog="The text comes from the chosen data (default: data=stdlib) and is repeated if it is too short.",
    )
    parser.add_argument("overrides", nargs="*", help="data=…, prepare.…=…")
    parser.add_argument("--megabytes", type=WholeNumber(1), default=128, help="amount of text (default: 128)")
    parser.add_argument("--rounds", type=WholeNumber(1), default=5, help="measured rounds (default: 5)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="also write all numbers to this file")
    options = parser.read(arguments)
    cfg = check(compose(options.overrides), groups=["data", "prepare"])
    if cfg.prepare is None:
        raise ConfigError("benchmark prepare: this choice of data has no recipe; choose data with a prepare section")

    with raising_config_errors(), tempfile.TemporaryDirectory() as folder:
        contenders, size = _contenders(build(cfg.prepare), Path(folder), options.megabytes << 20)
        rounds = take_turns(contenders, options.rounds, lambda call, number: call(number))
    console.print(f"medians of {options.rounds} rounds over {si(size)}B of text; ratios are taken within each round")
    table = Table("", "seconds", "bytes/s", "ratio to tokenizer")
    for name in CONTENDERS:
        seconds = median(rounds, name)
        table.add_row(name, f"{seconds:.2f}", si(size / seconds), f"{ratio(rounds, 'tokenizer', name):.3f}")
    console.print(table)
    for name, meaning in CONTENDERS.items():
        console.print(f"  {name}: {meaning}")
    if options.json:
        write_json_with_machine(options.json, overrides=options.overrides, bytes=size, seconds=rounds)
    return 0


def _contenders(recipe: "Recipe", folder: Path, wanted: int) -> tuple[dict[str, Callable[[int], float]], int]:
    from lmtrain.data.prepare import Recipe
    from lmtrain.data.progress import DataProgress
    from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, load_tokenizer
    from lmtrain.data.text.holdout import by_document
    from lmtrain.data.text.source import TextFiles
    from lmtrain.data.tokenizer import CorpusTokenizer, Pretrained

    texts: list[str] = []
    size = 0
    while size < wanted:
        for document in recipe.source.read():
            texts.append(document.text)
            size += len(document.text.encode())
            if size >= wanted:
                break
    (folder / "text.txt").write_bytes(SEPARATOR.join(texts).encode())

    def prepare(number: int, tokenizer: CorpusTokenizer | None = None) -> float:
        source = TextFiles(str(folder / "text.txt"), SEPARATOR)
        tokenizer = tokenizer or Pretrained(str(folder / "trained" / TOKENIZER_FILE))
        holdout = partial(by_document, val_share=0.05)
        path = folder / (f"tokens-{number}" if number else "trained")
        started = time.perf_counter()
        with DataProgress() as progress:
            Recipe(source, tokenizer, holdout, recipe.workers).prepare(path, {}, progress)
        return time.perf_counter() - started

    prepare(0, recipe.tokenizer)
    stored = load_tokenizer(folder / "trained")
    batches: list[list[str]] = [[]]
    for text in texts:
        if sum(map(len, batches[-1])) >= BATCH_CHARS:
            batches.append([])
        batches[-1].append(text)

    def tokenizer(number: int) -> float:
        started = time.perf_counter()
        for batch in batches:
            stored.tokenizer.encode_batch(batch)
        return time.perf_counter() - started

    return {"prepare": lambda number: prepare(number + 1), "tokenizer": tokenizer}, size
