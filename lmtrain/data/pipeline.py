"""Token folders past one machine: steps for datatrove's pipelines, under its local, Slurm and Ray executors.

Each rank encodes its documents and writes shards of its own into a hidden folder beside the token folder; `finish`
checks them, numbers them in rank order and moves them to their place, all at once. The extra `lmtrain[datatrove]`.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, NoReturn

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ImportError(
        "lmtrain.data.pipeline: needs the `datatrove` package; pip install 'lmtrain[datatrove]'"
    ) from error

from lmtrain.data import tokenizer as tokenizers
from lmtrain.data.encode import ITEM_BYTES, Chunk, Encoder
from lmtrain.data.holdout import Held, Holdout
from lmtrain.data.journal import SplitWriter
from lmtrain.data.source import PART_BYTES, Document, parts, utf8_bytes
from lmtrain.data.tokenizer import BPE, Bytes, Characters, Corpus, CorpusTokenizer, Encode, Pretrained, StoredTokenizer
from lmtrain.data.tokens import (
    SPLITS,
    DataError,
    Meta,
    Shard,
    Split,
    TokenizerFile,
    read_meta,
    smallest_dtype,
    write_meta,
)
from lmtrain.differences import differences
from lmtrain.durable import sync, write_atomically

SETTINGS, RECORD, TOKENS = "settings.json", "record.json", "tokens"  # in the hidden folder

AGAIN = (
    "run the same pipeline again: datatrove runs the ranks that have no file completions/RANK in its logging_dir "
    "(remove one that is there)"
)


class TokenShards(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """The last step of a pipeline: encodes a rank's documents into shards of at most `shard_tokens` tokens.

    Documents are held out and encoded as `prepare` would. What a rank writes depends on its documents alone, not on how
    many ranks run at once; which documents it gets, and so the order of all, depends on the number of ranks. A rank
    that was killed is run again and replaces its own files; nothing lies in `folder` before `finish`.

    Made where the pipeline is launched, this stores the tokenizer. A folder that has one may be given instead: one that
    learns from text is trained on a sample first, by `lmtrain prepare`.

    Raises:
        ValueError: the folder is there, or was begun, with other settings; a tokenizer that needs text.
    """

    type = "TOKENIZER"
    name = "lmtrain token shards"

    def __init__(
        self, folder: str | Path, tokenizer: CorpusTokenizer | str | Path, holdout: Holdout, shard_tokens: int = 1 << 30
    ) -> None:
        super().__init__()
        if shard_tokens < 1:
            raise ValueError(f"shard_tokens={shard_tokens}: at least 1")
        self.folder = Path(folder).absolute()  # nodes may start in another one
        self.tokenizer = _Stored(Path(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer
        self.holdout, self.shard_tokens = holdout, shard_tokens
        self._begin()

    def _begin(self) -> None:
        begun = unfinished(self.folder)
        settings: dict[str, Any] = {
            "tokenizer": {"kind": self.tokenizer.kind, **vars(self.tokenizer)},
            "holdout": _described(self.holdout),
            "shard_tokens": self.shard_tokens,
        }
        settings = json.loads(json.dumps(settings, default=str))  # a tokenizer of one's own may hold anything
        if (begun / SETTINGS).exists():
            earlier = json.loads((begun / SETTINGS).read_text())
        elif _has_entries(self.folder):
            meta = read_meta(self.folder)
            earlier = {key: meta.recipe.get(key) for key in settings} if meta else {}
        else:
            begun.mkdir(parents=True, exist_ok=True)
            tokenizers.save(begun, self.tokenizer.fit(_NoCorpus(self.tokenizer.kind)))
            write_atomically(begun / SETTINGS, json.dumps(settings, indent=1) + "\n")  # last
            earlier = settings
        if changed := differences(earlier, settings):
            raise DataError(
                f"{self.folder}: was begun with other settings ({'; '.join(changed)}); give another folder, or remove "
                f"it, {begun} and datatrove's logging_dir to start anew"
            )

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        begun = unfinished(self.folder)
        if not begun.exists() or (begun / TOKENS).exists():
            raise DataError(
                f"{self.folder}: is finished, or {begun} is gone; remove it and datatrove's logging_dir to start anew"
            )
        own, writing = begun / f"{rank:05}", begun / f".{rank:05}"
        if writing.exists():
            shutil.rmtree(writing)
        if own.exists():
            os.rename(own, writing)  # gone at once; removing takes a while
            shutil.rmtree(writing)
        writing.mkdir()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the ranks are the parallelism
        encoder = Encoder(self.tokenizer, begun)
        itemsize = encoder.dtype.itemsize
        writers = {split: _ShardWriter(writing, split, itemsize, self.shard_tokens) for split in SPLITS}
        for texts in _batches(data or (), self.holdout):
            with self.track_time(unit="batch"):
                for split, chunk in encoder(texts).items():
                    writers[split].write(chunk)
                    self.stat_update("documents", value=chunk.documents, unit="batch")
                    self.stat_update(f"{split}_tokens", value=chunk.tokens, unit="batch")
        record = _Record(rank, world_size, {split: writer.finish() for split, writer in writers.items()})
        write_atomically(writing / RECORD, json.dumps(asdict(record), indent=1) + "\n")
        sync(writing)
        os.rename(writing, own)
        sync(begun)


class Finish(PipelineStep):  # type: ignore[misc]
    """`finish` as the only step of a pipeline of one task, whose executor `depends` on that of `TokenShards`."""

    type = "TOKENIZER"
    name = "lmtrain token folder"

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder).absolute()

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        if world_size != 1:
            raise ValueError(f"Finish: tasks={world_size}: it is one task")
        for split, counted in finish(self.folder).splits.items():
            self.stat_update(f"{split}_tokens", value=counted.tokens, unit="folder")


def finish(folder: str | Path) -> Meta:
    """Makes the token folder of what the ranks of `TokenShards` wrote; done again, it does no harm.

    Raises:
        DataError: a rank is missing, or its files are not what it wrote; a split has no tokens.
    """
    folder = Path(folder).absolute()
    begun = unfinished(folder)
    tokens = begun / TOKENS  # once it is there, the ranks have been checked and write no more
    if _has_entries(folder):
        return _finished(folder, begun)
    if not begun.exists():
        raise DataError(f"{folder}: nothing to finish, as no pipeline with TokenShards has begun it")
    records = _records(begun)
    if not tokens.exists():
        checked = _checked(folder, begun, records)
        ready = begun / f".{TOKENS}"
        ready.mkdir(exist_ok=True)
        for name in (tokenizers.FILE, tokenizers.CONFIG_FILE):
            shutil.copyfile(begun / name, ready / name)
            sync(ready / name)
        write_meta(ready, checked)
        os.rename(ready, tokens)
    meta = read_meta(tokens)
    assert meta is not None
    for split in SPLITS:
        for (path, _), shard in zip(_files(begun, records, split), meta.splits[split].shards, strict=True):
            if path.exists():  # else an earlier process moved it
                os.rename(path, tokens / shard.file)
    sync(tokens)
    os.rename(tokens, folder)
    sync(folder.parent)
    shutil.rmtree(begun)
    return meta


def _finished(folder: Path, begun: Path) -> Meta:
    """The meta of a folder that is there; removes what an earlier process had no time to."""
    meta = read_meta(folder)
    settings = json.loads((begun / SETTINGS).read_text()) if (begun / SETTINGS).exists() else {}
    if meta is None or (begun / TOKENS).exists() or not settings.items() <= meta.recipe.items():
        raise DataError(f"{folder}: is not empty, and not of this pipeline; move it away, and finish again")
    if begun.exists():
        shutil.rmtree(begun)
    return meta


def unfinished(folder: Path) -> Path:
    """Where the ranks write until the folder is finished."""
    return folder.with_name(f".ranks-{folder.name}")


@dataclass(frozen=True)
class _Record:
    """`record.json` of a rank: its files of each split, in order."""

    rank: int
    world_size: int
    splits: dict[str, list[Split]]


class _ShardWriter:
    """Writes one split of one rank; each file is full but the last, and there is none without tokens."""

    def __init__(self, folder: Path, split: str, itemsize: int, shard_tokens: int) -> None:
        self.folder, self.split, self.itemsize, self.shard_tokens = folder, split, itemsize, shard_tokens
        self.written: list[Split] = []
        self.writer: SplitWriter | None = None

    def write(self, chunk: Chunk) -> None:
        while chunk.tokens:
            if self.writer is None:
                self.writer = SplitWriter(self.folder / _file(self.split, len(self.written)), self.itemsize, None)
            fitting, chunk = self._cut(chunk, self.shard_tokens - self.writer.tokens)
            self.writer.write(fitting)
            if self.writer.tokens == self.shard_tokens:
                self.finish()

    def finish(self) -> list[Split]:
        if self.writer is not None:
            self.written.append(self.writer.flushed())
            self.writer.close()
            self.writer = None
        return self.written

    def _cut(self, chunk: Chunk, tokens: int) -> tuple[Chunk, Chunk]:
        """The first tokens, and the rest, which is the one that counts the documents."""
        if chunk.tokens <= tokens:
            return chunk, Chunk()
        cut = tokens * self.itemsize
        rest = replace(chunk, data=chunk.data[cut:], tokens=chunk.tokens - tokens)
        return Chunk(chunk.data[:cut], tokens, chunk.max_id), rest


class _Stored:
    """The tokenizer of a folder, beside token files or not."""

    FASTEST: ClassVar[dict[str, CorpusTokenizer]] = {one.kind: one for one in (BPE(257), Bytes(), Characters())}

    def __init__(self, folder: Path) -> None:
        meta = read_meta(folder)
        self.kind = meta.tokenizer.kind if meta else Pretrained.kind
        self.folder = str(folder.absolute())
        self.sha256 = hashlib.sha256(tokenizers.load(folder).tokenizer.to_str().encode()).hexdigest()

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        return tokenizers.load(Path(self.folder))

    def encoder(self, stored: StoredTokenizer) -> Encode:
        same = self.FASTEST.get(self.kind)
        return same.encoder(stored) if same else stored.encode_batch


class _NoCorpus:
    """In place of the text that a tokenizer learns from."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def texts(self) -> NoReturn:
        raise ValueError(
            f"TokenShards: a tokenizer of the kind {self.kind} learns from text; let `lmtrain prepare` train it on a "
            "sample, and give the folder that makes"
        )

    def train_sample(self, max_bytes: int) -> NoReturn:
        self.texts()


def _batches(data: Iterable[Any], holdout: Holdout) -> Iterator[list[Held]]:
    texts: list[Held] = []
    size = 0
    for document in data:
        for part in _parts(str(document.id), document.text):
            for held in holdout(part):
                texts.append(held)
                size += len(held.text)
            if size >= ITEM_BYTES:
                yield texts
                texts, size = [], 0
    if texts:
        yield texts


def _parts(name: str, text: str) -> Iterator[Document]:
    """As the sources of `prepare` give it: a long text in parts, an empty one not at all."""
    if 4 * len(text) <= PART_BYTES or utf8_bytes(text) <= PART_BYTES:  # no character has more than four
        if text:
            yield Document(name, text)
        return
    data = text.encode()
    for document, _ in parts(name, len(data), lambda start, end: data[start:end], 0, PART_BYTES):
        yield document


def _described(holdout: Any) -> dict[str, Any]:
    """As its config has it."""
    if isinstance(holdout, functools.partial):
        return {**_described(holdout.func), **holdout.keywords} | ({"args": holdout.args} if holdout.args else {})
    named = holdout if hasattr(holdout, "__qualname__") else type(holdout)
    return {"_target_": f"{named.__module__}.{named.__qualname__}"}


def _records(begun: Path) -> list[_Record]:
    """Those of all ranks, in order.

    Raises:
        DataError: one is missing, or they are of pipelines with different numbers of tasks.
    """
    records: dict[int, _Record] = {}
    for path in begun.glob(f"[0-9]*/{RECORD}"):
        fields = json.loads(path.read_text())
        splits = {name: [Split(**{**split, "shards": ()}) for split in of] for name, of in fields["splits"].items()}
        records[int(path.parent.name)] = _Record(fields["rank"], fields["world_size"], splits)
    sizes = sorted({record.world_size for record in records.values()})
    if not sizes:
        raise DataError(f"{begun}: no rank has finished; {AGAIN}")
    if len(sizes) > 1:
        raise DataError(
            f"{begun}: ranks of pipelines of {' and '.join(map(str, sizes))} tasks, whose documents overlap; remove it "
            "and datatrove's logging_dir to start anew"
        )
    if missing := [rank for rank in range(sizes[0]) if rank not in records]:
        raise DataError(f"{begun}: {_ranks(missing)} of {sizes[0]} did not finish; {AGAIN}")
    return [records[rank] for rank in range(sizes[0])]


def _checked(folder: Path, begun: Path, records: list[_Record]) -> Meta:
    """What the ranks' files add up to; reads each of them.

    Raises:
        DataError: files are not what their rank wrote, or a split is empty.
    """
    damaged: dict[int, Path] = {}
    splits = {}
    for split in SPLITS:
        files = _files(begun, records, split)
        whole = hashlib.sha256()
        for path, written in files:
            if not path.is_file() or _sha256(path, whole) != written.sha256:
                damaged.setdefault(int(path.parent.name), path)
        splits[split] = Split(
            tokens=sum(written.tokens for _, written in files),
            max_id=max((written.max_id for _, written in files), default=0),
            documents=sum(written.documents for _, written in files),
            bytes=sum(written.bytes for _, written in files),
            sha256=whole.hexdigest(),
            shards=tuple(
                Shard(_file(split, number), written.tokens, written.sha256) for number, (_, written) in enumerate(files)
            ),
        )
    if damaged:
        named = ", ".join(map(str, list(damaged.values())[:8]))
        raise DataError(f"{named}: missing, or not what {_ranks(sorted(damaged))} wrote; {AGAIN}")
    for split, counted in splits.items():
        if counted.tokens < 2:
            raise DataError(f"{folder}: the {split} split got {counted.tokens} tokens; hold out another share")
    stored = tokenizers.load(begun)
    settings = json.loads((begun / SETTINGS).read_text())
    sha256 = hashlib.sha256((begun / tokenizers.FILE).read_bytes()).hexdigest()
    return Meta(
        dtype=smallest_dtype(stored.vocab_size),
        vocab_size=stored.vocab_size,
        tokenizer=TokenizerFile(settings["tokenizer"]["kind"], tokenizers.FILE, sha256),
        end_of_text=stored.end_of_text,
        splits=splits,
        recipe={**settings, "tasks": len(records)},
    )


def _sha256(path: Path, whole: Any) -> str:
    """The file's own, while `whole` goes on over all files."""
    own = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            own.update(block)
            whole.update(block)
    return own.hexdigest()


def _files(begun: Path, records: Iterable[_Record], split: str) -> list[tuple[Path, Split]]:
    return [
        (begun / f"{record.rank:05}" / _file(split, number), written)
        for record in records
        for number, written in enumerate(record.splits[split])
    ]


def _file(split: str, number: int) -> str:
    return f"{split}_{number:06}.bin"


def _ranks(ranks: list[int]) -> str:
    named = ", ".join(map(str, ranks[:8])) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")
    return f"rank{'s' * (len(ranks) > 1)} {named}"


def _has_entries(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())
