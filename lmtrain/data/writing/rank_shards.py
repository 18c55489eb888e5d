"""Writes the shards and the record of each rank of a pipeline, and makes the token folder from those of all ranks."""

import hashlib
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lmtrain.data.meta import MAX_JSON_BYTES, SPLITS, Meta, Shard, Split, read_meta, write_meta
from lmtrain.data.stored_tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, meta_of_splits
from lmtrain.data.text.holdout import TEST_SETTINGS
from lmtrain.data.writing.encode import EncodedTexts
from lmtrain.data.writing.journal import SplitWriter
from lmtrain.errors import DataError
from lmtrain.files.durable import sync
from lmtrain.files.limited import read_json_limited
from lmtrain.files.links import refuse_links
from lmtrain.terminal.as_text import first_few
from lmtrain.terminal.units import counted

SETTINGS_FILE, RECORD_FILE, TOKENS_FOLDER = "settings.json", "record.json", "tokens"  # in the hidden folder

RUN_AGAIN = (
    "run the same pipeline again: datatrove runs the ranks that have no file completions/RANK in its logging_dir "
    "(remove this file for a rank that must run again)"
)


def finish_token_folder(folder: str | Path) -> Meta:
    """Make the token folder from the shards of all ranks of `TokenShards`; a second call does no harm.

    Raises:
        DataError: a rank is missing, its files are damaged, or a split has no tokens.
    """
    folder = Path(folder).absolute()
    hidden = unfinished_folder(folder)
    tokens = hidden / TOKENS_FOLDER  # once it exists, all ranks are checked and may not write any more
    if has_entries(folder):
        return _finished(folder, hidden)
    if not hidden.exists():
        raise DataError(f"{folder}: nothing to finish, because no pipeline with TokenShards has begun it")
    records = _records(hidden)
    if not tokens.exists():
        checked = _checked_meta(folder, hidden, records)
        ready = hidden / f".{TOKENS_FOLDER}"
        ready.mkdir(exist_ok=True)
        for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
            shutil.copyfile(hidden / name, ready / name)
            sync(ready / name)
        write_meta(ready, checked)
        os.rename(ready, tokens)
    meta = read_meta(tokens)
    assert meta is not None
    for split in meta.splits:
        for (path, _), shard in zip(_shards_of(hidden, records, split), meta.splits[split].shards, strict=True):
            if path.exists():  # otherwise an earlier process has moved it
                os.rename(path, tokens / shard.file)
    sync(tokens)
    os.rename(tokens, folder)
    sync(folder.parent)
    shutil.rmtree(hidden)
    return meta


def _finished(folder: Path, hidden: Path) -> Meta:
    """Return the meta of a finished folder; remove the hidden folder if an earlier process was killed before that."""
    meta = read_meta(folder)
    settings = read_json_limited(hidden / SETTINGS_FILE, MAX_JSON_BYTES) if (hidden / SETTINGS_FILE).exists() else {}
    if meta is None or (hidden / TOKENS_FOLDER).exists() or not settings.items() <= meta.recipe.items():
        raise DataError(f"{folder}: has files that this pipeline did not make; move it away, and finish again")
    if hidden.exists():
        shutil.rmtree(hidden)
    return meta


def unfinished_folder(folder: Path) -> Path:
    """Return the hidden folder that the ranks write to; raise ValueError if it is a link."""
    hidden = folder.with_name(f".ranks-{folder.name}")
    refuse_links(hidden.parent, [hidden.name])
    return hidden


@dataclass(frozen=True)
class RankRecord:
    """The contents of a rank's `record.json`: its files of each split, in order."""

    rank: int
    world_size: int
    splits: dict[str, list[Split]]


class ShardWriter:
    """Writes one split of one rank. Every file except the last one is full, and no file is empty."""

    def __init__(self, folder: Path, split: str, itemsize: int, shard_tokens: int) -> None:
        self.folder, self.split, self.itemsize, self.shard_tokens = folder, split, itemsize, shard_tokens
        self.written: list[Split] = []
        self.writer: SplitWriter | None = None

    def write(self, chunk: EncodedTexts) -> None:
        while chunk.tokens:
            if self.writer is None:
                self.writer = SplitWriter(self.folder / _shard_name(self.split, len(self.written)), self.itemsize, None)
            fitting, chunk = self._cut(chunk, self.shard_tokens - self.writer.tokens)
            self.writer.write(fitting)
            if self.writer.tokens == self.shard_tokens:
                self.finish()

    def finish(self) -> list[Split]:
        if self.writer is not None:
            self.written.append(self.writer.close())
            self.writer = None
        return self.written

    def _cut(self, chunk: EncodedTexts, tokens: int) -> tuple[EncodedTexts, EncodedTexts]:
        """Return the first `tokens` tokens, and the rest with all counts of documents and bytes."""
        if chunk.tokens <= tokens:
            return chunk, EncodedTexts()
        cut = tokens * self.itemsize
        rest = replace(chunk, data=chunk.data[cut:], tokens=chunk.tokens - tokens)
        return EncodedTexts(chunk.data[:cut], tokens, chunk.max_id), rest


def _records(hidden: Path) -> list[RankRecord]:
    """Return the records of all ranks, in order.

    Raises:
        DataError: a record is missing, or the records come from pipelines with different numbers of tasks.
    """
    records: dict[int, RankRecord] = {}
    for path in hidden.glob(f"[0-9]*/{RECORD_FILE}"):
        fields = read_json_limited(path, MAX_JSON_BYTES)
        splits = {name: [Split(**{**split, "shards": ()}) for split in of] for name, of in fields["splits"].items()}
        records[int(path.parent.name)] = RankRecord(fields["rank"], fields["world_size"], splits)
    sizes = sorted({record.world_size for record in records.values()})
    if not sizes:
        raise DataError(f"{hidden}: no rank has finished; {RUN_AGAIN}")
    if len(sizes) > 1:
        raise DataError(
            f"{hidden}: has ranks of pipelines with {' and '.join(map(str, sizes))} tasks, whose documents overlap; "
            "remove it and datatrove's logging_dir to start over"
        )
    if missing := [rank for rank in range(sizes[0]) if rank not in records]:
        raise DataError(f"{hidden}: {_named_ranks(missing)} of {sizes[0]} did not finish; {RUN_AGAIN}")
    return [records[rank] for rank in range(sizes[0])]


def _checked_meta(folder: Path, hidden: Path, records: list[RankRecord]) -> Meta:
    """Return the meta of all ranks' files together, after reading each file.

    Raises:
        DataError: files are missing or damaged, or a split is empty.
    """
    damaged: dict[int, Path] = {}
    splits = {}
    settings = read_json_limited(hidden / SETTINGS_FILE, MAX_JSON_BYTES)
    asks_for_test = any(settings["holdout"].get(key) for key in TEST_SETTINGS)
    for split in SPLITS:
        files = _shards_of(hidden, records, split)
        if split == "test" and not files and not asks_for_test:
            continue
        whole = hashlib.sha256()
        for path, written in files:
            if not path.is_file() or _sha256(path, whole) != written.sha256:
                damaged.setdefault(int(path.parent.name), path)
        checked_bytes = sum(written.checked_bytes for _, written in files)
        splits[split] = Split(
            tokens=sum(written.tokens for _, written in files),
            max_id=max((written.max_id for _, written in files), default=0),
            documents=sum(written.documents for _, written in files),
            bytes=sum(written.bytes for _, written in files),
            sha256=whole.hexdigest(),
            shards=tuple(
                Shard(_shard_name(split, number), written.tokens, written.sha256)
                for number, (_, written) in enumerate(files)
            ),
            checked_bytes=checked_bytes,
            lost_share=sum(written.lost_bytes for _, written in files) / max(1, checked_bytes),
        )
    if damaged:
        named = ", ".join(map(str, list(damaged.values())[:8]))
        raise DataError(f"{named}: missing or damaged; they are files of {_named_ranks(sorted(damaged))}; {RUN_AGAIN}")
    for split, counts in splits.items():
        if counts.tokens < 2:
            raise DataError(
                f"{folder}: the {split} split has only {counted(counts.tokens, 'token')}; hold out another share, or "
                "look in "
                "datatrove's logs for documents that the reader skipped. To start over, remove "
                f"{hidden} and datatrove's logging_dir"
            )
    return meta_of_splits(hidden, settings["tokenizer"]["kind"], splits, {**settings, "tasks": len(records)})


def _sha256(path: Path, whole: Any) -> str:
    """Return the SHA-256 of a file; also add the file to the hash `whole`."""
    own = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            own.update(block)
            whole.update(block)
    return own.hexdigest()


def _shards_of(hidden: Path, records: Iterable[RankRecord], split: str) -> list[tuple[Path, Split]]:
    return [
        (hidden / f"{record.rank:05}" / _shard_name(split, number), written)
        for record in records
        for number, written in enumerate(record.splits.get(split, []))
    ]


def _shard_name(split: str, number: int) -> str:
    return f"{split}_{number:06}.bin"


def _named_ranks(ranks: list[int]) -> str:
    return f"rank{'s' * (len(ranks) > 1)} {first_few(ranks, 8)}"


def has_entries(folder: Path) -> bool:
    """Return whether the folder exists and is not empty."""
    return folder.is_dir() and any(folder.iterdir())
