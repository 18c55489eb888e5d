"""Prepares token files: text → tokenizer → tokens. `Recipe` is what the config keys `prepare.*` describe."""

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
from lmtrain.data.text.holdout import Holdout, SplitText, asks_for_test, check_split_sizes
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

COMMIT_SECONDS = 2.0  # time between commits, and so the most work that a kill can lose
LOST_SETTING = "prepare.max_lost_share"
UNRECORDED = ("workers", "max_lost_share")  # settings that do not change the files
SPARE_BYTES = 64 << 20  # disk space needed besides the tokens


class Recipe:
    """Makes a folder of token files from text.

    Args:
        source: The text (`prepare/source`).
        tokenizer: The tokenizer, trained on the text or loaded (`prepare/tokenizer`).
        holdout: The rule that says which text is held out for validation (`prepare/holdout`).
        workers: Processes that encode. null: one per core, or a single one for little text.
        max_lost_share: The largest share of the text's bytes for which the tokenizer may have no token. Text that loses
            more is refused.
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
        """Make the folder under a hidden name beside `path`, and rename it when it is complete.

        If an earlier process was killed and has left that hidden folder, this call continues from its last commit,
        provided that settings and text are the same. `settings` is the config that this object was built from; it is
        recorded in `meta.json`.

        Raises:
            ValueError: there is no text, a split gets no text, or the tokenizer can't encode the text.
            OSError: for example no space is left on the disk. The next call continues.
        """
        partial = path.with_name(f".partial-{path.name}")
        refuse_links(partial.parent, [partial.name])  # existing files are overwritten
        refuse_links(partial)
        with locked_folder(
            partial, lambda: progress.console.print("another process is preparing this; waiting for it …")
        ):
            if path.exists():  # another process has made it; the same recipe makes the same files
                _remove_unfinished(partial)
                return _read_existing(path, settings)
            try:
                meta = self._prepare(path, partial, settings, progress)
            except ValueError:  # the user's mistake in settings or text
                if (left := read_journal(partial)) is None or not left.splits:
                    _remove_unfinished(partial)
                raise
            os.rename(partial, path)
            sync(path.parent)
            (path / JOURNAL_FILE).unlink()  # only now: without the journal, nobody could continue after a kill
        return meta

    def _prepare(self, path: Path, folder: Path, settings: Mapping[str, Any], progress: DataProgress) -> Meta:
        journal, inputs = self._earlier(folder, settings, progress) or self._begin(folder, settings, progress)
        total = self.source.text_bytes(inputs)
        if total == 0:
            raise ValueError("prepare.source: contains no text")
        progress.console.print(f"preparing {path}" + (f" from {si(total)}B of text" if total else "") + " …")
        if not journal.tokenizer:
            save_tokenizer(folder, self.tokenizer.fit(TrainingText(self.source, self.holdout, total, progress)))
            journal.tokenizer = True
            journal.write(folder)
        if not journal.complete:
            try:
                self._encode(folder, journal, total, progress)
            except ValueError:  # another recipe or text is needed, which would start over anyway
                journal.splits, journal.position = {}, None
                journal.write(folder)
                raise
        return self._finish(folder, journal)

    def _earlier(
        self, folder: Path, settings: Mapping[str, Any], progress: DataProgress
    ) -> tuple[Journal, Inputs] | None:
        """Return the state of an earlier process, if this one can continue from it."""
        journal, inputs = read_journal(folder), read_inputs(folder)
        if journal is None or inputs is None:
            return None
        tokens = sum(split.tokens for split in journal.splits.values())
        if changed := changed_settings(journal.recipe, settings) or self.source.changes(inputs):
            if tokens:
                raise DataError(
                    f"{folder}: is an unfinished preparation of {tokens:,} tokens so far, and this has changed since: "
                    f"{'; '.join(changed)}; undo the change to continue, or remove the folder to start over"
                )
            return None
        progress.console.print(f"continuing where an earlier process stopped, after {tokens:,} tokens")
        return journal, inputs

    def _begin(self, folder: Path, settings: Mapping[str, Any], progress: DataProgress) -> tuple[Journal, Inputs]:
        progress.stage("reading text", None)
        inputs = self.source.scan(progress.advance)
        for remark in remarks_on(inputs):
            progress.console.print(printable(f"note: {remark}"), style="yellow")
        for entry in folder.iterdir():  # only after the scan: the text may be on a disk that is not mounted now
            if not _is_unfinished(entry):
                raise DataError(f"{entry}: not a file of lmtrain, which needs this folder; move it away")
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
            progress.console.print(f"starting over: {error}")
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
        if not journal.splits["test"].tokens and not asks_for_test(self.holdout):
            del journal.splits["test"]
            writers["test"].path.unlink()
        check_split_sizes({split: counts.tokens for split, counts in journal.splits.items()})
        journal.complete = True
        journal.write(folder)

    def _check_space(self, folder: Path, left_bytes: int, encoder: Encoder) -> None:
        """Raise OSError if the disk has too little space, estimated from the tokens per byte of the first texts."""
        first = next(_text_batches(self.source, self.holdout, None), TextBatch([], None))
        chunks = encoder(first.texts).values()
        tokens_per_byte = sum(chunk.tokens for chunk in chunks) / max(1, sum(chunk.bytes for chunk in chunks))
        needed = int(1.1 * left_bytes * tokens_per_byte * encoder.dtype.itemsize) + SPARE_BYTES
        free = free_bytes(folder)
        if free is not None and free < needed:
            raise OSError(
                f"{folder.parent}: the tokens need about {needed / 1e9:.1f} GB, but only {free / 1e9:.1f} GB are free; "
                "free some space, or choose another folder (data.path, LMTRAIN_DATA)"
            )

    def _finish(self, folder: Path, journal: Journal) -> Meta:
        """Give the files their final names and write `meta.json`; a second call does no harm."""
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
    """Return a split's file name before it is complete. It is not `.bin`, because bare `.bin` files can be read."""
    return folder / f"{split}.unfinished"


def _is_unfinished(entry: Path) -> bool:
    """Return whether an entry of the hidden folder is one of lmtrain's own files."""
    own = {JOURNAL_FILE, INPUTS_FILE, TOKENIZER_FILE, TOKENIZER_CONFIG_FILE, "meta.json"}
    own |= {f"{split}.{suffix}" for split in SPLITS for suffix in ("unfinished", "bin")}
    return entry.name.removeprefix(".tmp-") in own and not entry.is_dir()


def _remove_unfinished(folder: Path) -> None:
    """Remove lmtrain's files from the hidden folder, and the folder itself if nothing else is in it."""
    for entry in filter(_is_unfinished, list(folder.iterdir())):
        entry.unlink()
    with contextlib.suppress(OSError):
        folder.rmdir()


def _read_existing(path: Path, settings: Mapping[str, Any]) -> Meta:
    """Return the meta of an existing folder.

    Raises:
        DataError: it was prepared with other settings, which the message lists, or not by lmtrain.
    """
    meta = read_meta(path)
    if meta is None:
        to_train = f"; to train on it, use data=tokens data.path={path}" if any(path.glob("*.bin")) else ""
        raise DataError(
            f"data.path={path}: has no meta.json, so lmtrain did not make it{to_train}; to prepare, give a new folder"
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
    """Make the token folder unless it exists; return its meta, and the seconds needed (0 if it existed).

    Raises:
        ValueError: it exists and was made with other settings, or, with `check_text`, from other text.
    """
    if not path.name or path.is_file():
        raise DataError(f"data.path={path}: not a folder name; give a new folder for the token files")
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
    place = path.resolve() if path.is_symlink() else path  # keep a link, and make its target
    if place.exists():
        try:
            place.rmdir()
        except OSError as error:
            raise DataError(
                f"data.path={path}: can't be replaced by the new token folder ({error.strerror}), for example because "
                f"it is a mounted volume; give a folder inside it: data.path={path / 'tokens'}"
            ) from error
    started = time.perf_counter()
    return build(config).prepare(place, settings, progress), time.perf_counter() - started
