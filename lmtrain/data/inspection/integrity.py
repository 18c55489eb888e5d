"""Checks that token files agree with `meta.json` and are usable for a model. Each finding names the file."""

from pathlib import Path

from lmtrain.data.inspection.statistics import SplitStatistics
from lmtrain.data.meta import Meta
from lmtrain.data.token_files import TokenFiles
from lmtrain.files.durable import sha256_of
from lmtrain.terminal.units import counted


def folder_problems(folder: Path, meta: Meta | None) -> list[str]:
    """Return the problems with the folder's tokenizer: it is missing, or not the one that made the tokens."""
    if meta is None or not meta.tokenizer.file:
        return []
    stored = folder / meta.tokenizer.file
    if not stored.is_file():
        return [f"{stored}: no such file, but meta.json names it as the tokenizer of these tokens"]
    if sha256_of(stored) != meta.tokenizer.sha256:
        return [f"{stored}: not the tokenizer that meta.json names (SHA-256 differs), so its ids may mean other text"]
    return []


def folder_notes(folder: Path, meta: Meta | None, dtype: str | None = None) -> list[str]:
    """Return notes about things that are not checked, and files that are not read."""
    if meta is None:
        return [
            f"no meta.json, so the contents can't be checked; files without a header are read as {dtype or 'uint16'}"
        ]
    known = {shard.file for split in meta.splits for shard in meta.files(split)}
    others = sorted(path.name for path in folder.glob("*.bin") if path.name not in known)
    return [f"{', '.join(others)}: left out, not listed in meta.json"] if others else []


def split_problems(files: TokenFiles, found: SplitStatistics, vocab_size: int | None) -> list[str]:
    """Return the problems of a split: differences from meta.json, and ids outside the vocabulary."""
    problems = []
    if files.meta:
        expected = files.meta.splits[files.split]
        checksums = {shard.file: shard.sha256 for shard in files.meta.files(files.split)}
        for file in found.files:
            if file.sha256 != checksums[file.path.name]:
                problems.append(
                    f"{file.path}: damaged or changed since it was prepared: its SHA-256 is {file.sha256}, but "
                    f"meta.json says {checksums[file.path.name]}"
                )
        if not problems and found.sha256 != expected.sha256:
            problems.append(
                f"{files.folder / 'meta.json'}: says that {files.split} has the SHA-256 {expected.sha256}, but its "
                f"shards together have {found.sha256}"
            )
        if found.max_id != expected.max_id:
            problems.append(
                f"{files.folder / files.split}.bin: its largest id is {found.max_id}, but meta.json says "
                f"{expected.max_id}"
            )
    if vocab_size is not None and found.first_too_large is not None:
        path, number = files.locate_token(found.first_too_large)
        token = int(files.span(found.first_too_large, found.first_too_large + 1)[0])
        problems.append(
            f"{path}: token {number:,} is {token}, not below the vocabulary size of {vocab_size:,} "
            f"({counted(found.above(vocab_size), 'such token')} in {files.split})"
        )
    return problems


def split_notes(files: TokenFiles, found: SplitStatistics, end_of_text: int | None) -> list[str]:
    """Return notes about things in a split that are unusual but may be intended."""
    notes = []
    if end_of_text is not None:
        ends = int(found.token_counts[end_of_text]) if end_of_text < len(found.token_counts) else 0
        expected = files.meta.splits[files.split].documents if files.meta else ends
        if not ends:
            notes.append(
                f"{files.split}: the end-of-text id {end_of_text} does not occur, so the split counts as one document"
            )
        elif files.meta and files.meta.end_of_text == end_of_text and ends != expected:
            notes.append(
                f"{files.split}: has {counted(ends, 'end-of-text id')}, but meta.json says "
                f"{counted(expected, 'document')}; the text may "
                "contain the end of text"
            )
        if found.empty_documents:
            notes.append(f"{files.split}: left out {counted(found.empty_documents, 'empty document')}")
    return notes
