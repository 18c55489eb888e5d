"""Whether token files are what `meta.json` says, and fit for a model; each finding names the file."""

from pathlib import Path

from lmtrain.data.inspection.statistics import SplitStatistics
from lmtrain.data.meta import Meta
from lmtrain.data.token_files import TokenFiles
from lmtrain.files.durable import sha256_of


def folder_problems(folder: Path, meta: Meta | None) -> list[str]:
    """Report a tokenizer that is not the one the tokens were made with."""
    if meta is None or not meta.tokenizer.file:
        return []
    stored = folder / meta.tokenizer.file
    if not stored.is_file():
        return [f"{stored}: no such file, but meta.json names it as the tokenizer of these tokens"]
    if sha256_of(stored) != meta.tokenizer.sha256:
        return [f"{stored}: not the tokenizer that meta.json names (another SHA-256); its ids may mean other text"]
    return []


def folder_notes(folder: Path, meta: Meta | None, dtype: str | None = None) -> list[str]:
    """Report what is not checked or not read."""
    if meta is None:
        return [
            "no meta.json: nothing says what the files should hold; those without a header are read as "
            f"{dtype or 'uint16'}"
        ]
    known = {shard.file for split in meta.splits for shard in meta.files(split)}
    others = sorted(path.name for path in folder.glob("*.bin") if path.name not in known)
    return [f"{', '.join(others)}: left out, not in meta.json"] if others else []


def split_problems(files: TokenFiles, found: SplitStatistics, vocab_size: int | None) -> list[str]:
    """Report how the files differ from what meta.json says, and ids that no model of this vocabulary takes."""
    problems = []
    if files.meta:
        said = files.meta.splits[files.split]
        checksums = {shard.file: shard.sha256 for shard in files.meta.files(files.split)}
        for file in found.files:
            if file.sha256 != checksums[file.path.name]:
                problems.append(
                    f"{file.path}: damaged or changed since it was prepared: its SHA-256 is {file.sha256}, meta.json "
                    f"says {checksums[file.path.name]}"
                )
        if not problems and found.sha256 != said.sha256:
            problems.append(
                f"{files.folder / 'meta.json'}: says that {files.split} has the SHA-256 {said.sha256}, but its shards "
                f"together have {found.sha256}"
            )
        if found.max_id != said.max_id:
            problems.append(
                f"{files.folder / files.split}.bin: its largest id is {found.max_id}, meta.json says {said.max_id}"
            )
    if vocab_size is not None and found.first_too_large is not None:
        path, number = files.locate_token(found.first_too_large)
        token = int(files.span(found.first_too_large, found.first_too_large + 1)[0])
        problems.append(
            f"{path}: token {number:,} is {token}, not below the vocabulary size of {vocab_size:,} "
            f"({found.above(vocab_size):,} such tokens in {files.split})"
        )
    return problems


def split_notes(files: TokenFiles, found: SplitStatistics, end_of_text: int | None) -> list[str]:
    """Report what looks odd, but may be meant."""
    notes = []
    if end_of_text is not None:
        ends = int(found.token_counts[end_of_text]) if end_of_text < len(found.token_counts) else 0
        said = files.meta.splits[files.split].documents if files.meta else ends
        if not ends:
            notes.append(f"{files.split}: the end-of-text id {end_of_text} does not occur; it counts as one document")
        elif files.meta and files.meta.end_of_text == end_of_text and ends != said:
            notes.append(
                f"{files.split}: {ends:,} end-of-text ids, but {said:,} documents by meta.json: the text itself may "
                "contain it"
            )
        if found.empty_documents:
            notes.append(f"{files.split}: {found.empty_documents:,} documents are empty; they are not counted")
    return notes
