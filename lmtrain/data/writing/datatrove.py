"""Makes token folders on many machines: steps for datatrove's pipelines, under its local, Slurm and Ray executors.

Each rank encodes its documents and writes its own shards into a hidden folder beside the token folder. `Finish` checks
the shards, numbers them in rank order and moves them into the token folder. Needs the extra `lmtrain[datatrove]`.
"""

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

try:
    from datatrove.pipeline.base import PipelineStep
except ImportError as error:
    raise ImportError(
        "lmtrain.data.writing.datatrove: needs the `datatrove` package; pip install 'lmtrain[datatrove]'"
    ) from error

from lmtrain.data.meta import MAX_JSON_BYTES, SPLITS, read_meta
from lmtrain.data.stored_tokenizer import Encode, StoredTokenizer, load_tokenizer, save_tokenizer
from lmtrain.data.text.document import PART_BYTES, text_parts
from lmtrain.data.text.holdout import Holdout, SplitText
from lmtrain.data.tokenizer import BPE, Bytes, Characters, Corpus, CorpusTokenizer, Pretrained
from lmtrain.data.writing.encode import BATCH_BYTES, Encoder
from lmtrain.data.writing.lost_text import MAX_LOST_SHARE, check_lost_text
from lmtrain.data.writing.rank_shards import (
    RECORD_FILE,
    SETTINGS_FILE,
    TOKENS_FOLDER,
    RankRecord,
    ShardWriter,
    finish_token_folder,
    has_entries,
    unfinished_folder,
)
from lmtrain.errors import DataError
from lmtrain.files.durable import sync, write_atomically
from lmtrain.files.limited import read_json_limited
from lmtrain.terminal.as_text import differences


class TokenShards(PipelineStep):  # type: ignore[misc]  # datatrove has no types
    """The last step of a pipeline: encodes a rank's documents into shards.

    Documents are held out and encoded as in `lmtrain prepare`. A rank's shards depend only on its documents, not on how
    many ranks run at once. The number of ranks decides which documents a rank gets, and so the order of all documents.
    A rank that was killed is run again and replaces its own files. `folder` stays empty until `Finish` has run.

    The object is made where the pipeline is launched, and stores the tokenizer there.

    Args:
        folder: The token folder to make.
        tokenizer: The tokenizer, or a folder that contains one. A tokenizer that learns from text must be trained on a
            sample first, with `lmtrain prepare`; then give the prepared folder.
        holdout: The rule that says which text is held out for validation.
        shard_tokens: The most tokens in one file.
        max_lost_share: The largest share of a rank's text for which the tokenizer may have no token.

    Raises:
        ValueError: the folder exists, or was begun, with other settings; or the tokenizer has to learn from text. `run`
            also raises it if a rank loses more than `max_lost_share` of its text.
    """

    type = "TOKENIZER"
    name = "lmtrain token shards"

    def __init__(
        self,
        folder: str | Path,
        tokenizer: CorpusTokenizer | str | Path,
        holdout: Holdout,
        shard_tokens: int = 1 << 30,
        max_lost_share: float = MAX_LOST_SHARE,
    ) -> None:
        super().__init__()
        if shard_tokens < 1:
            raise ValueError(f"shard_tokens={shard_tokens}: must be at least 1")
        self.folder = Path(folder).absolute()  # nodes may start in another folder
        self.tokenizer = _FolderTokenizer(Path(tokenizer)) if isinstance(tokenizer, str | Path) else tokenizer
        self.holdout, self.shard_tokens, self.max_lost_share = holdout, shard_tokens, max_lost_share
        self._begin()

    def _begin(self) -> None:
        hidden = unfinished_folder(self.folder)
        settings: dict[str, Any] = {
            "tokenizer": {"kind": self.tokenizer.kind, **vars(self.tokenizer)},
            "holdout": _holdout_settings(self.holdout),
            "shard_tokens": self.shard_tokens,
        }
        settings = json.loads(json.dumps(settings, default=str))  # a user's tokenizer may have any attributes
        if (hidden / SETTINGS_FILE).exists():
            earlier = read_json_limited(hidden / SETTINGS_FILE, MAX_JSON_BYTES)
        elif has_entries(self.folder):
            meta = read_meta(self.folder)
            earlier = {key: meta.recipe.get(key) for key in settings} if meta else {}
        else:
            hidden.mkdir(parents=True, exist_ok=True)
            save_tokenizer(hidden, self.tokenizer.fit(_NoCorpus(self.tokenizer.kind)))
            # The settings come last: a folder with them has everything that the ranks need.
            write_atomically(hidden / SETTINGS_FILE, json.dumps(settings, indent=1) + "\n")
            earlier = settings
        if changed := differences(earlier, settings):
            raise DataError(
                f"{self.folder}: was begun with other settings ({'; '.join(changed)}); give another folder, or remove "
                f"it, {hidden} and datatrove's logging_dir to start over"
            )

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        hidden = unfinished_folder(self.folder)
        if not hidden.exists() or (hidden / TOKENS_FOLDER).exists():
            raise DataError(
                f"{self.folder}: is finished, or {hidden} is gone; remove it and datatrove's logging_dir to start over"
            )
        own, writing = hidden / f"{rank:05}", hidden / f".{rank:05}"
        if writing.exists():
            shutil.rmtree(writing)
        if own.exists():
            os.rename(own, writing)  # takes effect at once, while removing takes a while
            shutil.rmtree(writing)
        writing.mkdir()
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # the ranks are the parallelism
        encoder = Encoder(self.tokenizer, hidden)
        itemsize = encoder.dtype.itemsize
        writers = {split: ShardWriter(writing, split, itemsize, self.shard_tokens) for split in SPLITS}
        for texts in _batches(data or (), self.holdout):
            with self.track_time(unit="batch"):
                for split, chunk in encoder(texts).items():
                    writers[split].write(chunk)
                    self.stat_update("documents", value=chunk.documents, unit="batch")
                    self.stat_update(f"{split}_tokens", value=chunk.tokens, unit="batch")
        record = RankRecord(rank, world_size, {split: writer.finish() for split, writer in writers.items()})
        shards = [shard for written in record.splits.values() for shard in written]
        check_lost_text(shards, sum(shard.bytes for shard in shards), self.max_lost_share, "max_lost_share")
        write_atomically(writing / RECORD_FILE, json.dumps(asdict(record), indent=1) + "\n")
        sync(writing)
        os.rename(writing, own)
        sync(hidden)


class Finish(PipelineStep):  # type: ignore[misc]
    """Makes the token folder from the shards of all ranks.

    It is the only step of a pipeline with one task. The pipeline's executor `depends` on the executor of `TokenShards`.
    """

    type = "TOKENIZER"
    name = "lmtrain token folder"

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder).absolute()

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> None:
        if world_size != 1:
            raise ValueError(f"Finish: tasks={world_size}: must be 1")
        for split, counted in finish_token_folder(self.folder).splits.items():
            self.stat_update(f"{split}_tokens", value=counted.tokens, unit="folder")


class _FolderTokenizer:
    """The tokenizer in a folder, which may have token files or not."""

    def __init__(self, folder: Path) -> None:
        meta = read_meta(folder)
        self.kind = meta.tokenizer.kind if meta else Pretrained.kind
        self.folder = str(folder.absolute())
        self.sha256 = hashlib.sha256(load_tokenizer(folder).tokenizer.to_str().encode()).hexdigest()

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        return load_tokenizer(Path(self.folder))

    def encoder(self, stored: StoredTokenizer) -> Encode:
        kinds: tuple[CorpusTokenizer, ...] = (BPE(257), Bytes(), Characters())
        same = next((tokenizer for tokenizer in kinds if tokenizer.kind == self.kind), None)
        return same.encoder(stored) if same else stored.encode_batch


class _NoCorpus:
    """Raises an error if a tokenizer wants text to learn from."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def texts(self) -> NoReturn:
        raise ValueError(
            f"TokenShards: a tokenizer of the kind {self.kind} learns from text; train it on a sample with "
            "`lmtrain prepare`, and give the folder that it makes"
        )

    def train_sample(self, max_bytes: int) -> NoReturn:
        self.texts()


def _batches(data: Iterable[Any], holdout: Holdout) -> Iterator[list[SplitText]]:
    texts: list[SplitText] = []
    size = 0
    for document in data:
        # Like the sources of `prepare`: a long text comes in parts, and an empty one is left out.
        for part, _ in text_parts(str(document.id), document.text, 0, PART_BYTES) if document.text else ():
            for split_text in holdout(part):
                texts.append(split_text)
                size += len(split_text.text)
            if size >= BATCH_BYTES:
                yield texts
                texts, size = [], 0
    if texts:
        yield texts


def _holdout_settings(holdout: Any) -> dict[str, Any]:
    """Return the holdout as a config describes it."""
    if isinstance(holdout, functools.partial):
        return {**_holdout_settings(holdout.func), **holdout.keywords} | (
            {"args": holdout.args} if holdout.args else {}
        )
    named = holdout if hasattr(holdout, "__qualname__") else type(holdout)
    return {"_target_": f"{named.__module__}.{named.__qualname__}"}
