"""Text → tokenizer → token files: `Recipe(source, tokenizer, holdout).prepare(path)`, described by `prepare.*`."""

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import PositiveInt

from lmtrain.data.meta import SPLITS, Meta, read_meta, write_meta
from lmtrain.data.progress import DataProgress
from lmtrain.data.recorded_settings import changed_settings
from lmtrain.data.stored_tokenizer import TOKENIZER_CONFIG_FILE, TOKENIZER_FILE, meta_of_splits, save_tokenizer
from lmtrain.data.text.holdout import Holdout, SplitText
from lmtrain.data.text.inputs import INPUTS_FILE, Inputs, read_inputs, remarks_on, write_inputs
from lmtrain.data.text.source import Source
from lmtrain.data.text.training_text import TrainingText
from lmtrain.data.tokenizer import CorpusTokenizer
from lmtrain.data.writing.encode import BATCH_BYTES, PROCESSES_FROM_BYTES, Encoder, TextBatch, encode_in_processes
from lmtrain.data.writing.journal import JOURNAL_FILE, Journal, SplitWriter, read_journal
from lmtrain.data.writing.lost_text import MAX_LOST_SHARE, Share, check_lost_text
from lmtrain.errors import DataError
from lmtrain.files.durable import sync
from lmtrain.files.links import refuse_links
from lmtrain.files.lock import locked_folder
from lmtrain.files.unsupported import free_bytes
from lmtrain.machine import available_cores
from lmtrain.terminal.as_text import printable
from lmtrain.terminal.units import si

COMMIT_SECONDS = 2.0  # between commits: what a kill costs at most
LOST_SETTING = "prepare.max_lost_share"
UNRECORDED = ("workers", "max_lost_share")  # settings that change nothing in what is made
SPARE_BYTES = 64 << 20  # of disk space, beside the tokens


class Recipe:
    """How a folder of token files is made from text; `workers` processes encode (null: one a core).

    Text of which the tokenizer has no tokens for more than `max_lost_share` is refused.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: CorpusTokenizer,
        holdout: Holdout,
        workers: PositiveInt | None = None,
        max_lost_share: Share = MAX_LOST_SHARE,
    ) -> None:
        self.source, self.tokenizer, self.holdout, self.workers = source, tokenizer, holdout, workers
        self.max_lost_share = max_lost_share

    def prepare(self, path: Path, settings: Mapping[str, Any], progress: DataProgress) -> Meta:
        """Make the folder: in a hidden one beside it, which is moved to its place when complete.

        A process that was killed left that folder; this one goes on from its last commit if settings and text are the
        same. `settings` is the config this object was built from; it is kept in `meta.json`.

        Raises:
            ValueError: no text, a split without any, text that the tokenizer can't encode.
            OSError: no space left on the disk, say; the next call goes on.
        """
        partial = path.with_name(f".partial-{path.name}")
        refuse_links(partial.parent, [partial.name])  # what lies there is written over
        refuse_links(partial)
        with locked_folder(
            partial, lambda: progress.console.print("another process is preparing this; waiting for it …")
        ):
            if path.exists():  # another process made it meanwhile; the same recipe makes the same files
                _remove_unfinished(partial)
                return _read_existing(path, settings)
            try:
                meta = self._prepare(path, partial, settings, progress)
            except ValueError:  # a mistake in settings or text
                if (left := read_journal(partial)) is None or not left.splits:
                    _remove_unfinished(partial)
                raise
            os.rename(partial, path)
            sync(path.parent)
            (path / JOURNAL_FILE).unlink()  # not before: a kill in between would find the work of nobody
        return meta

    def _prepare(self, path: Path, folder: Path, settings: Mapping[str, Any], progress: DataProgress) -> Meta:
        journal, inputs = self._earlier(folder, settings, progress) or self._begin(folder, settings, progress)
        total = self.source.text_bytes(inputs)
        if total == 0:
            raise ValueError("prepare.source: no text in it")
        progress.console.print(f"preparing {path}" + (f" from {si(total)}B of text" if total else "") + " …")
        if not journal.tokenizer:
            save_tokenizer(folder, self.tokenizer.fit(TrainingText(self.source, self.holdout, total, progress)))
            journal.tokenizer = True
            journal.write(folder)
        if not journal.complete:
            self._encode(folder, journal, total, progress)
        return self._finish(folder, journal)

    def _earlier(
        self, folder: Path, settings: Mapping[str, Any], progress: DataProgress
    ) -> tuple[Journal, Inputs] | None:
        """Return where another process stopped, if it is of use."""
        journal, inputs = read_journal(folder), read_inputs(folder)
        if journal is None or inputs is None:
            return None
        tokens = sum(split.tokens for split in journal.splits.values())
        if changed := changed_settings(journal.recipe, settings) or self.source.changes(inputs):
            if tokens:
                raise DataError(
                    f"{folder}: is an unfinished preparation of {tokens:,} tokens so far, and since then changed: "
                    f"{'; '.join(changed)}; go on as it was begun, or remove it to begin anew"
                )
            return None
        progress.console.print(f"going on where an earlier process stopped, after {tokens:,} tokens")
        return journal, inputs

    def _begin(self, folder: Path, settings: Mapping[str, Any], progress: DataProgress) -> tuple[Journal, Inputs]:
        progress.stage("reading text", None)
        inputs = self.source.scan(progress.advance)
        for remark in remarks_on(inputs):
            progress.console.print(printable(f"note: {remark}"), style="yellow")
        for entry in folder.iterdir():  # after the text was found good: it may be the disk it is on that is gone
            if not _is_unfinished(entry):
                raise DataError(f"{entry}: not of a preparation of lmtrain, which needs this folder; move it away")
            entry.unlink()
        write_inputs(folder, inputs)
        journal = Journal(settings)
        journal.write(folder)
        return journal, inputs

    def _encode(self, folder: Path, journal: Journal, total: int | None, progress: DataProgress) -> None:
        encoder = Encoder(self.tokenizer, folder)
        itemsize = encoder.dtype.itemsize
        try:
            writers = {
                split: SplitWriter(_unfinished_file(folder, split), itemsize, journal.splits.get(split))
                for split in SPLITS
            }
        except ValueError as error:
            progress.console.print(f"starting anew: {error}")
            journal.splits, journal.position = {}, None
            writers = {split: SplitWriter(_unfinished_file(folder, split), itemsize, None) for split in SPLITS}
        done = sum(split.bytes for split in journal.splits.values())
        if total is not None:
            self._check_space(folder, total - done, encoder)
        workers = self.workers or (available_cores() if (total or PROCESSES_FROM_BYTES) >= PROCESSES_FROM_BYTES else 1)
        progress.stage("encoding", total, done)
        committed = time.monotonic()
        batches = _text_batches(self.source, self.holdout, journal.position)
        here = ((batch, encoder(batch.texts)) for batch in batches)
        for batch, chunks in here if workers == 1 else encode_in_processes(batches, self.tokenizer, folder, workers):
            for split, chunk in chunks.items():
                writers[split].write(chunk)
                progress.advance(chunk.bytes, chunk.tokens)
            if total is not None:
                check_lost_text(writers.values(), total, self.max_lost_share, LOST_SETTING)
            if time.monotonic() - committed > COMMIT_SECONDS:
                journal.splits = {split: writer.flushed() for split, writer in writers.items()}
                journal.position = batch.position
                journal.write(folder)
                committed = time.monotonic()
        read = sum(writer.bytes for writer in writers.values())
        check_lost_text(writers.values(), read, self.max_lost_share, LOST_SETTING)
        journal.splits = {split: writer.close() for split, writer in writers.items()}
        for split, counted in journal.splits.items():
            if counted.tokens < 2:
                raise ValueError(
                    f"prepare.holdout: the {split} split got {counted.tokens} tokens; hold out another share "
                    "(prepare.holdout.val_share), other names (prepare.holdout.val) or the tail of each document "
                    "(prepare/holdout=tail)"
                )
        journal.complete = True
        journal.write(folder)

    def _check_space(self, folder: Path, left_bytes: int, encoder: Encoder) -> None:
        """Refuse to start what the disk can't hold, going by the first text's tokens a byte."""
        first = next(_text_batches(self.source, self.holdout, None), TextBatch([], None))
        chunks = encoder(first.texts).values()
        tokens_per_byte = sum(chunk.tokens for chunk in chunks) / max(1, sum(chunk.bytes for chunk in chunks))
        needed = int(1.1 * left_bytes * tokens_per_byte * encoder.dtype.itemsize) + SPARE_BYTES
        free = free_bytes(folder)
        if free is not None and free < needed:
            raise OSError(
                f"{folder.parent}: the tokens need about {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; make "
                "room, or give another place (data.path, LMTRAIN_DATA)"
            )

    def _finish(self, folder: Path, journal: Journal) -> Meta:
        """Give the files their names; done again, it does no harm."""
        for split in journal.splits:
            if _unfinished_file(folder, split).exists():
                os.rename(_unfinished_file(folder, split), folder / f"{split}.bin")
        meta = meta_of_splits(folder, self.tokenizer.kind, journal.splits, dict(journal.recipe))
        write_meta(folder, meta)
        sync(folder)
        return meta


def _text_batches(source: Source, holdout: Holdout, position: Any) -> Iterator[TextBatch]:
    reader = source.read(position)
    texts: list[SplitText] = []
    size = 0
    for document in reader:
        for split_text in holdout(document):
            texts.append(split_text)
            size += len(split_text.text)
        if size >= BATCH_BYTES:
            yield TextBatch(texts, reader.position())
            texts, size = [], 0
    if texts:
        yield TextBatch(texts, reader.position())


def _unfinished_file(folder: Path, split: str) -> Path:
    """Return the name of a file that is no `.bin` yet, as a folder of those can be read without `meta.json`."""
    return folder / f"{split}.unfinished"


def _is_unfinished(entry: Path) -> bool:
    """Return whether an entry of the hidden folder is a file that a preparation writes."""
    own = {JOURNAL_FILE, INPUTS_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "meta.json"}
    own |= {f"{split}.{suffix}" for split in SPLITS for suffix in ("unfinished", "bin")}
    return entry.name.removeprefix(".tmp-") in own and not entry.is_dir()


def _remove_unfinished(folder: Path) -> None:
    """Remove the hidden folder of a preparation; what others have put there stays, and the folder with it."""
    for entry in filter(_is_unfinished, list(folder.iterdir())):
        entry.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _read_existing(path: Path, settings: Mapping[str, Any]) -> Meta:
    """Return the meta of a folder that is there.

    Raises:
        DataError: it was prepared with other settings, or not at all; the message lists what differs.
    """
    meta = read_meta(path)
    if meta is None:
        to_train = f"; data=tokens data.path={path} trains on it as it is" if any(path.glob("*.bin")) else ""
        raise DataError(
            f"data.path={path}: has no meta.json, so it was made elsewhere{to_train}; to prepare, give a new folder"
        )
    if changed := changed_settings(meta.recipe, settings):
        raise DataError(
            f"data.path={path}: was prepared with other settings ({'; '.join(changed)}); give another data.path, "
            "or remove the folder to prepare it again"
        )
    return meta


def prepare(
    path: Path,
    config: Mapping[str, Any],
    build: Callable[[Any], Recipe],
    progress: DataProgress,
    *,
    check_text: bool = False,
) -> tuple[Meta, float]:
    """Make the token folder unless it is there; return its meta, and the seconds it took (0 if it was there).

    Raises:
        ValueError: it is there and was made with other settings, or (`check_text`) from other text.
    """
    if not path.name or path.is_file():
        raise DataError(f"data.path={path}: give a folder of its own")
    settings = {key: value for key, value in config.items() if key not in UNRECORDED}
    if path.exists() and any(path.iterdir()):
        meta = _read_existing(path, settings)
        inputs = read_inputs(path) if check_text else None
        if inputs is not None and (changed := build(config).source.changes(inputs)):
            raise DataError(
                f"data.path={path}: was prepared from other text ({'; '.join(changed)}); give another data.path, or "
                "remove the folder to prepare it again"
            )
        return meta, 0.0
    place = path.resolve() if path.is_symlink() else path  # a link stays, and what it leads to is made
    if place.exists():
        try:
            place.rmdir()
        except OSError as error:
            raise DataError(
                f"data.path={path}: can't be replaced by the new token folder ({error.strerror}), as a mounted volume "
                f"can't; give a folder in it: data.path={path / 'tokens'}"
            ) from error
    started = time.perf_counter()
    return build(config).prepare(place, settings, progress), time.perf_counter() - started
