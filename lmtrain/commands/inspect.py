"""`python -m lmtrain inspect FOLDER…`: describes folders of token files and checks that they are intact."""

import argparse
import json
import math
import textwrap
import typing
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from lmtrain.config.build import raising_config_errors
from lmtrain.data.inspection.folder import Excerpt, InspectedFolder, SplitReport, inspect_folder
from lmtrain.data.inspection.repeats import Repeats
from lmtrain.data.inspection.statistics import LONGER_THAN, PASSAGE_TOKENS, entropy
from lmtrain.data.progress import DataProgress
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE
from lmtrain.data.token_type import TokenType
from lmtrain.errors import ConfigError
from lmtrain.machine import is_installed
from lmtrain.terminal.as_text import printable
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, WholeNumber, output_file
from lmtrain.terminal.units import percent, si

FREQUENT = 12  # tokens in the table of frequent tokens
FEW_DOCUMENTS = 4  # up to so many documents, each length is listed
SHARES_FROM_DOCUMENTS = 30  # with fewer documents, a share in percent says little
TEXT_COLUMNS = 92
SAMPLE_LINES = 6


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain inspect",
        description="Describes folders of token files: documents, vocabulary, repeated text, and text that is in both "
        "validation and training. Reads every token and checks the files against meta.json.",
        epilog="The exit code is 2 if a problem is found.",
    )
    parser.add_argument(
        "folders", type=Path, nargs="+", metavar="FOLDER", help="folder of prepared token files or of bare .bin files"
    )
    parser.add_argument(
        "--end-of-text", type=WholeNumber(), metavar="ID", help="id between documents (default: from meta.json)"
    )
    parser.add_argument(
        "--tokenizer", type=Path, metavar="FOLDER", help="folder with a tokenizer.json, for token files without one"
    )
    parser.add_argument(
        "--dtype", choices=typing.get_args(TokenType), help="type of bare .bin files (default: uint16, checked)"
    )
    parser.add_argument(
        "--samples", type=WholeNumber(), default=3, help="number of document beginnings to show (default: 3)"
    )
    parser.add_argument("--seed", type=WholeNumber(), default=0, help="seed that chooses the samples (default: 0)")
    parser.add_argument(
        "--json", type=output_file, metavar="FILE", help="write all numbers to this file, including histograms"
    )
    parser.add_argument(
        "--png", type=output_file, metavar="FILE", help="draw a figure to this file; needs lmtrain[plot]"
    )
    options = parser.read(arguments)
    check_options(options)

    found = []
    with raising_config_errors():
        for folder in options.folders:
            with DataProgress() as progress:
                inspected = inspect_folder(
                    folder,
                    tokenizer=options.tokenizer,
                    end_of_text=options.end_of_text,
                    samples=options.samples,
                    seed=options.seed,
                    progress=progress,
                    dtype=options.dtype,
                )
            show(inspected)
            found.append(inspected)
        if options.json:
            options.json.write_text(json.dumps({"folders": [each.as_json() for each in found]}, allow_nan=False) + "\n")
            console.print(f"numbers: {options.json}")
        if options.png:
            from lmtrain.data.inspection.picture import draw_folders

            draw_folders(found, options.png)
            console.print(f"picture: {options.png}")
    return 2 if any(inspected.problems for inspected in found) else 0


def check_options(options: argparse.Namespace) -> None:
    """Raise ConfigError for mistakes that would otherwise show only after all tokens have been read."""
    for folder in options.folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder}: " + ("is a file; give its folder" if folder.exists() else "no such folder"))
    if options.tokenizer and not (options.tokenizer / TOKENIZER_FILE).is_file():
        raise ConfigError(f"--tokenizer {options.tokenizer}: no {TOKENIZER_FILE} there; give a folder that has one")
    if options.png and not is_installed("matplotlib"):
        raise ConfigError(f"--png {options.png}: needs matplotlib; install it with pip install 'lmtrain[plot]'")


def show(inspected: InspectedFolder) -> None:
    console.print(f"\n{heading(inspected)}", style="bold")
    if inspected.splits:
        console.print(statistics_table(inspected))
        console.print(frequent_tokens_table(inspected))
    begins = "a document begins at" if inspected.end_of_text is not None else "from"
    for name, split in inspected.splits.items():
        for sample in split.samples:
            console.print(f"{name}: {begins} token {sample.position:,}", style="dim")
            console.print(textwrap.indent("\n".join(sample_lines(sample)), "  │ "))
    for note in inspected.notes:
        console.print(f"note: {note}", style="yellow")
    for problem in inspected.problems:
        console.print(f"problem: {problem}", style="bold red")
    if inspected.meta and not inspected.problems:
        console.print("checksums, ids and tokenizer agree with meta.json", style="green")


def heading(inspected: InspectedFolder) -> str:
    """Return the folder and its totals in one line."""
    facts = [f"{sum(split.statistics.tokens for split in inspected.splits.values()):,} tokens"]
    if inspected.vocab_size:
        facts.append(f"vocabulary of {inspected.vocab_size:,}")
    if inspected.meta and inspected.meta.tokenizer.file:
        facts.append(f"tokenizer {inspected.meta.tokenizer.kind}")
    if inspected.end_of_text is not None:
        facts.append(f"end of text {inspected.end_of_text}")
    return f"{inspected.folder}: {', '.join(facts)}"


def statistics_table(inspected: InspectedFolder) -> Table:
    """Return a table with one column per split and one section per subject."""
    table = Table("", *inspected.splits)
    for column in table.columns[1:]:
        column.justify = "right"
    lengths = [split.statistics.lengths for split in inspected.splits.values()]
    few = all(counted is not None and counted.total <= FEW_DOCUMENTS for counted in lengths)
    of_splits = [
        (_files(split), _documents(split, few), _vocabulary(split, inspected.vocab_size), _repeats(split))
        for split in inspected.splits.values()
    ]
    for sections in zip(*of_splits, strict=True):
        for title in dict.fromkeys(title for section in sections for title in section):
            table.add_row(title, *(section.get(title, "–") for section in sections))
        table.add_section()
    return table


def _files(split: SplitReport) -> dict[str, str]:
    files = split.statistics.files
    rows = {
        "tokens": f"{split.statistics.tokens:,}",
        "files": files[0].path.name if len(files) == 1 else f"{len(files)} shards",
        "on disk": f"{si(split.statistics.bytes)}B as {split.statistics.dtype}",
    }
    if split.text_bytes and split.lost_share:
        rows["text without a token"] = percent(split.lost_share)
    if split.text_bytes and split.bytes_per_token:
        rows["text"] = f"{si(split.text_bytes)}B, {split.bytes_per_token:.3f} per token"
    return rows


def _documents(split: SplitReport, few: bool) -> dict[str, str]:
    lengths = split.statistics.lengths
    if not lengths or not lengths.total:
        return {}
    if few:
        each = [length for length, count in zip(lengths.lengths, lengths.documents, strict=True) for _ in range(count)]
        return {"documents": f"{lengths.total:,}", "  tokens in each": ", ".join(f"{length:,}" for length in each)}
    rows = {
        "documents": f"{lengths.total:,}",
        "tokens per document: median, mean": f"{lengths.quantile(0.5):,}, {lengths.mean:,.0f}",
        "  shortest, 95%, longest": f"{lengths.lengths[0]:,}, {lengths.quantile(0.95):,}, {lengths.lengths[-1]:,}",
    }
    for tokens in LONGER_THAN if lengths.total >= SHARES_FROM_DOCUMENTS else ():
        if longer := lengths.longer_than(tokens):
            rows[f"  longer than {tokens:,}"] = f"{longer:,} ({percent(longer / lengths.total)})"
    return rows


def _vocabulary(split: SplitReport, vocab_size: int | None) -> dict[str, str]:
    statistics = split.statistics
    of = f" of {vocab_size:,} ({percent(statistics.ids_in_use / vocab_size)})" if vocab_size else ""
    nats = entropy(statistics.token_counts)
    rows = {
        "ids in use": f"{statistics.ids_in_use:,}{of}",
        "largest id": f"{statistics.max_id:,}",
        "unigram entropy": f"{nats / math.log(2):.3f} bits",
    }
    if split.unigram_loss is not None:
        rows["unigram loss (train's frequencies)"] = f"{split.unigram_loss:.4f} nats"
    if split.unigram_bits_per_byte:
        rows["  bits per byte"] = f"{split.unigram_bits_per_byte:.4f}"
    return rows


def _repeats(split: SplitReport) -> dict[str, str]:
    rows = {
        "documents that repeat an earlier one": split.repeated_documents,
        "documents also in train": split.documents_in_train,
        f"{PASSAGE_TOKENS}-token passages that repeat": split.repeated_passages,
        f"{PASSAGE_TOKENS}-token passages also in train": split.passages_in_train,
    }
    return {title: _repeated_share(repeats, "documents" in title) for title, repeats in rows.items() if repeats}


def _repeated_share(repeats: Repeats, of_tokens: bool) -> str:
    """Return how many documents or passages repeat, with "about" for an estimate."""
    if not repeats.repeated:
        return "none" if repeats.looked_at == 1 else "none found"
    share = percent(repeats.share) + (f"; {percent(repeats.share_of_tokens)} of tokens" if of_tokens else "")
    return f"{repeats.repeated:,} ({share})" if repeats.looked_at == 1 else f"about {share}"


def frequent_tokens_table(inspected: InspectedFolder) -> Table:
    """Return a table of the most frequent tokens of each split and their shares."""
    table = Table("")
    columns = []
    for name, split in inspected.splits.items():
        table.add_column(f"most frequent in {name}")
        table.add_column("share", justify="right")
        statistics = split.statistics
        ids = statistics.most_frequent(FREQUENT)
        shares = [f"{statistics.token_counts[i] / statistics.tokens:.2%}" for i in ids]
        columns += [[token_text(inspected, i) for i in ids], shares]
    for rank in range(max(map(len, columns))):
        table.add_row(str(rank + 1), *(column[rank] if rank < len(column) else "" for column in columns))
    return table


def token_text(inspected: InspectedFolder, number: int) -> str:
    """Return a token's text and id, or the id alone if there is no tokenizer."""
    text = inspected.text_of(number)
    return f"{number}" if text is None else f"{_printable(text)!r} {number}"


def sample_lines(sample: Excerpt) -> list[str]:
    """Return the first lines of a sample, wrapped: its text, or its ids if there is no tokenizer."""
    text = " ".join(map(str, sample.ids)) if sample.text is None else sample.text
    most = SAMPLE_LINES if sample.text is not None else 1
    wrapped = [part for line in text.splitlines() for part in textwrap.wrap(_printable(line), TEXT_COLUMNS)]
    return wrapped[:most] + ["…"] * (len(wrapped) > most)


def _printable(text: str) -> str:
    return printable(text, keep="\n\t", instead="\ufffd")
