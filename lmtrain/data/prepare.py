"""Text → tokenizer → token files: `Recipe(source, tokenizer, holdout).prepare(path)`, described by `prepare.*`."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, BinaryIO

import numpy as np
from annotated_types import Interval
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from lmtrain.data.source import Document
from lmtrain.data.tokenizer import FILE, CorpusTokenizer
from lmtrain.data.tokens import DTYPES, SPLITS, Meta, Split, TokenizerFile, read_meta, smallest_dtype, write_meta
from lmtrain.differences import differences

ENCODE_CHARS = 4_000_000  # text encoded at once: enough to keep all cores busy, little memory

Share = Annotated[float, Interval(gt=0, lt=1)]
Holdout = Callable[[Document], Iterable[tuple[str, str]]]


def by_document(document: Document, *, val_share: Share) -> Iterator[tuple[str, str]]:
    """Holds out whole documents: those whose hashed name falls into the share, the same ones everywhere."""
    hashed = int.from_bytes(hashlib.blake2b(document.name.encode(), digest_size=8).digest()) / 2**64
    yield ("val" if hashed < val_share else "train"), document.text


def tail_of_each_document(document: Document, *, val_share: Share) -> Iterator[tuple[str, str]]:
    """Holds out the last characters of every document; works for a single file as well."""
    cut = int(len(document.text) * (1 - val_share))
    yield "train", document.text[:cut]
    yield "val", document.text[cut:]


class Recipe:
    """How a folder of token files is made from text."""

    def __init__(self, source: Iterable[Document], tokenizer: CorpusTokenizer, holdout: Holdout) -> None:
        self.source, self.tokenizer, self.holdout = source, tokenizer, holdout

    def prepare(self, path: Path, recipe: Mapping[str, Any], progress: Progress) -> Meta:
        """Makes the folder, or leaves none: it is written beside its place and moved there when complete.

        `recipe` is the config this object was built from; it is kept in `meta.json` so that a change is noticed.

        Raises:
            ValueError: no text, or a split without any.
        """
        partial = path.with_name(f".tmp-{path.name}-{os.getpid()}")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        try:
            meta = self._write(partial, recipe, progress)
            try:
                os.rename(partial, path)
            except OSError:  # another process was faster; the same recipe makes the same files
                if (theirs := existing(path, recipe)) is None:
                    raise
                meta = theirs
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return meta

    def _texts(self) -> Iterator[tuple[str, str]]:
        for document in self.source:
            yield from self.holdout(document)

    def _write(self, folder: Path, recipe: Mapping[str, Any], progress: Progress) -> Meta:
        task = progress.add_task("reading text", total=None)
        size = sum(
            len(text.encode()) for _, text in self._texts()
        )  # also finds unreadable files before the work starts
        if not size:
            raise ValueError("prepare.source: no text in it")
        progress.update(task, total=size, description="training tokenizer")
        # A vocabulary may see train text alone; characters that only the held-out text has need ids, too.
        trained_on = (text for split, text in self._texts() if split == "train" or self.tokenizer.kind == "characters")
        tokenizer = self.tokenizer.train(_counted(trained_on, progress, task))
        tokenizer.save(str(folder / FILE))
        tokenizer.encode_special_tokens = True  # the text's own "<|endoftext|>" is text
        progress.update(task, completed=0, description="encoding")
        vocab_size = tokenizer.get_vocab_size()
        end_of_text = tokenizer.token_to_id(self.tokenizer.end_of_text) if self.tokenizer.end_of_text else None
        dtype = smallest_dtype(vocab_size)
        writers = {split: _SplitWriter(folder / f"{split}.bin", dtype, end_of_text) for split in SPLITS}
        for batch in _batches(self._texts()):
            encodings = tokenizer.encode_batch_fast([text for _, text in batch])
            for (split, text), encoding in zip(batch, encodings, strict=True):
                writers[split].write(text, encoding.ids)
                progress.advance(task, len(text.encode()))
        splits = {split: writer.close() for split, writer in writers.items()}
        for split, counted in splits.items():
            if counted.tokens < 2:
                raise ValueError(
                    f"prepare.holdout: the {split} split got {counted.tokens} tokens; change "
                    "prepare.holdout.val_share, or hold out the tail of each document (see conf/data/text.yaml)"
                )
        sha256 = hashlib.sha256((folder / FILE).read_bytes()).hexdigest()
        meta = Meta(
            dtype=dtype,
            vocab_size=vocab_size,
            tokenizer=TokenizerFile(self.tokenizer.kind, FILE, sha256),
            end_of_text=end_of_text,
            splits=splits,
            recipe=dict(recipe),
        )
        write_meta(folder, meta)
        return meta


class _SplitWriter:
    """Appends documents to one `.bin`, counting and hashing what it writes."""

    def __init__(self, path: Path, dtype: str, end_of_text: int | None) -> None:
        self.file: BinaryIO = path.open("wb")
        self.dtype, self.end_of_text = DTYPES[dtype], end_of_text
        self.tokens = self.max_id = self.documents = self.bytes = 0
        self.sha256 = hashlib.sha256()

    def write(self, text: str, ids: list[int]) -> None:
        if not text:
            return
        if self.end_of_text is not None:
            ids = [*ids, self.end_of_text]
        data = np.array(ids, dtype=self.dtype).tobytes()  # numpy refuses an id that does not fit
        self.file.write(data)
        self.sha256.update(data)
        self.tokens += len(ids)
        self.max_id = max(self.max_id, max(ids, default=0))
        self.documents += 1
        self.bytes += len(text.encode())

    def close(self) -> Split:
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        return Split(self.tokens, self.max_id, self.documents, self.bytes, self.sha256.hexdigest())


def _batches(texts: Iterable[tuple[str, str]]) -> Iterator[list[tuple[str, str]]]:
    batch: list[tuple[str, str]] = []
    size = 0
    for item in texts:
        batch.append(item)
        size += len(item[1])
        if size >= ENCODE_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _counted(texts: Iterable[str], progress: Progress, task: Any) -> Iterator[str]:
    for text in texts:
        progress.advance(task, len(text.encode()))
        yield text


def existing(path: Path, recipe: Mapping[str, Any]) -> Meta | None:
    """The folder's meta if it was prepared by this recipe; None if there is no folder.

    Raises:
        ValueError: it was prepared with other settings; the message lists them.
    """
    if not path.exists():
        return None
    meta = read_meta(path)
    if meta is None:
        return None
    if changed := differences(meta.recipe, recipe, "prepare"):
        raise ValueError(
            f"data.path={path}: was prepared with other settings ({'; '.join(changed)}); give another data.path, "
            "or remove the folder to prepare it again"
        )
    return meta


def prepare(
    path: Path, recipe: Mapping[str, Any], build: Callable[[Any], Recipe], progress: Progress
) -> tuple[Meta, float]:
    """Makes the token folder unless it is there; its meta, and the seconds it took (0 if it was there)."""
    if meta := existing(path, recipe):
        return meta, 0.0
    if path.exists() and any(path.iterdir()):
        raise ValueError(f"data.path={path}: has files but no meta.json; give a new folder to prepare into")
    started = time.perf_counter()
    if path.exists():
        path.rmdir()
    return build(recipe).prepare(path, recipe, progress), time.perf_counter() - started


def progress_bar() -> Progress:
    from lmtrain.console import console

    return Progress(
        TextColumn("[bold]{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
