"""Inspects a folder of token files: the contents of its splits, the text that they share, and its problems."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lmtrain.data.inspection import integrity
from lmtrain.data.inspection.repeats import Pieces, Repeats
from lmtrain.data.inspection.statistics import (
    LONGER_THAN,
    PASSAGE_TOKENS,
    Lengths,
    SplitStatistics,
    entropy,
    read_split,
    unigram_loss,
)
from lmtrain.data.meta import SPLITS, Meta, read_meta
from lmtrain.data.progress import DataProgress
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, StoredTokenizer, load_tokenizer
from lmtrain.data.token_files import TokenFiles, split_names_in
from lmtrain.data.token_type import TokenType
from lmtrain.errors import DataError

MOST_FREQUENT = 50  # ids in the JSON file
SAMPLE_TOKENS = 160


@dataclass(frozen=True)
class Excerpt:
    """The first tokens of a document; if documents are not known, tokens from any position of the split."""

    position: int  # in the split
    ids: list[int]
    text: str | None  # None: there is no tokenizer


@dataclass(frozen=True)
class SplitReport:
    """The findings about one split and its overlap with train.

    Fields about documents are None if documents are not known. Fields about the overlap are None for train itself.
    """

    statistics: SplitStatistics
    text_bytes: int | None
    lost_share: float | None  # the share of those bytes that have no token; None: not known
    unigram_loss: float | None  # nats per token, for a model that knows train's token frequencies; None without train
    repeated_documents: Repeats | None
    repeated_passages: Repeats
    documents_in_train: Repeats | None
    passages_in_train: Repeats | None
    samples: list[Excerpt]

    @property
    def bytes_per_token(self) -> float | None:
        if not self.text_bytes or self.lost_share is None:
            return None
        return self.text_bytes * (1 - self.lost_share) / self.statistics.tokens

    def repeats(self) -> list[Repeats]:
        every = (self.repeated_documents, self.documents_in_train, self.repeated_passages, self.passages_in_train)
        return [repeats for repeats in every if repeats is not None]

    @property
    def unigram_bits_per_byte(self) -> float | None:
        if self.unigram_loss is None or self.bytes_per_token is None:
            return None
        return self.unigram_loss / math.log(2) / self.bytes_per_token


@dataclass(frozen=True)
class InspectedFolder:
    """The findings about a folder. `problems` make its files unusable for training; `notes` are worth knowing."""

    folder: Path
    meta: Meta | None
    tokenizer: StoredTokenizer | None
    end_of_text: int | None
    splits: dict[str, SplitReport]
    notes: list[str]
    problems: list[str]

    @property
    def vocab_size(self) -> int | None:
        return _vocab_size(self.meta, self.tokenizer)

    def text_of(self, token: int) -> str | None:
        """Return the text of an id; its name in the vocabulary if it is a part of a character or has no text."""
        if self.tokenizer is None:
            return None
        text = self.tokenizer.decode([token])
        return text if text and "\ufffd" not in text else self.tokenizer.tokenizer.id_to_token(token)

    def as_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "prepared": self.meta is not None,
            "tokenizer": asdict(self.meta.tokenizer) if self.meta else None,
            "vocab_size": self.vocab_size,
            "end_of_text": self.end_of_text,
            "splits": {name: self._split_as_json(split) for name, split in self.splits.items()},
            "notes": self.notes,
            "problems": self.problems,
        }

    def _split_as_json(self, split: SplitReport) -> dict[str, Any]:
        statistics = split.statistics
        lengths = statistics.lengths if statistics.lengths and statistics.lengths.total else None
        entropy_nats = entropy(statistics.token_counts)
        return {
            "files": [{**asdict(file), "path": str(file.path)} for file in statistics.files],
            "sha256": statistics.sha256,
            "dtype": statistics.dtype,
            "tokens": statistics.tokens,
            "bytes": statistics.bytes,
            "text_bytes": split.text_bytes,
            "lost_share": split.lost_share,
            "bytes_per_token": split.bytes_per_token,
            "ids_in_use": statistics.ids_in_use,
            "max_id": statistics.max_id,
            "entropy_bits": entropy_nats / math.log(2),
            "entropy_nats": entropy_nats,
            "unigram_loss_nats": split.unigram_loss,
            "unigram_bits_per_byte": split.unigram_bits_per_byte,
            "most_frequent": [
                {"id": i, "text": self.text_of(i), "tokens": int(statistics.token_counts[i])}
                for i in statistics.most_frequent(MOST_FREQUENT)
            ],
            "token_counts": statistics.token_counts.tolist(),
            "documents": lengths and _documents_as_json(split, lengths),
            "passages": {
                "passage_tokens": PASSAGE_TOKENS,
                "repeated": _repeats_as_json(split.repeated_passages),
                "in_train": _repeats_as_json(split.passages_in_train),
            },
            "samples": [asdict(sample) for sample in split.samples],
        }


def inspect_folder(
    folder: Path,
    *,
    tokenizer: Path | None,
    end_of_text: int | None,
    samples: int,
    seed: int,
    progress: DataProgress,
    dtype: TokenType | None = None,
) -> InspectedFolder:
    """Read every token of the folder once, and collect all problems.

    `tokenizer` is a folder whose `tokenizer.json` is used if this folder has none. `end_of_text` overrides the folder's
    own. `dtype` is the type of bare files, as in `TokenFiles`.

    Raises:
        DataError: the folder has no token files, or its `meta.json` can't be read.
    """
    meta = read_meta(folder)
    names = split_names(folder, meta)
    if not names:
        others = sorted(path.parent.name for path in folder.glob("*/*.bin"))
        hint = f"; there are some in {', '.join(dict.fromkeys(others))}" if others else ""
        raise DataError(f"{folder}: has no token files (*.bin){hint}")
    problems, notes = integrity.folder_problems(folder, meta), integrity.folder_notes(folder, meta, dtype)
    stored = _tokenizer(folder, tokenizer, problems)
    if end_of_text is None:
        end_of_text = meta.end_of_text if meta else stored.end_of_text if stored else None
    vocab_size = _vocab_size(meta, stored)
    read: dict[str, tuple[TokenFiles, SplitStatistics, Pieces]] = {}
    for name in names:
        try:
            files = TokenFiles(folder, name, dtype)
            progress.stage(f"{folder}: {name}", len(files) * files.dtype.itemsize)
            found, pieces = read_split(
                files,
                end_of_text=end_of_text,
                vocab_size=vocab_size,
                samples=samples,
                seed=seed,
                advance=progress.advance,
            )
        except (DataError, OSError) as error:
            problems.append(str(error))
            continue
        read[name] = files, found, pieces
        problems += integrity.split_problems(files, found, vocab_size)
        notes += integrity.split_notes(files, found, end_of_text)
    if end_of_text is None and read:
        notes.append(
            "the end-of-text id is not known, so documents can't be told apart; give it with --end-of-text (GPT-2's is "
            "50256)"
        )
    if stored is None:
        notes.append("no tokenizer.json, so tokens are shown as ids; --tokenizer FOLDER uses that of another folder")
    splits = {
        name: _report(files, found, pieces, read.get("train"), vocab_size, stored, end_of_text)
        for name, (files, found, pieces) in read.items()
    }
    looked_at = min((repeats.looked_at for split in splits.values() for repeats in split.repeats()), default=1)
    if looked_at < 1:
        notes.append(
            f"numbers with “about” are estimated from 1 in {round(1 / looked_at):,} of all different texts, chosen by "
            "their hash; a text that occurs very often may count too much or not at all"
        )
    return InspectedFolder(folder, meta, stored, end_of_text, splits, notes, problems)


def split_names(folder: Path, meta: Meta | None) -> list[str]:
    """Return the splits of a folder, train first. As in the loader, `fineweb_train_000001.bin` belongs to train."""
    names = list(meta.splits) if meta else split_names_in(folder)
    for split in SPLITS:
        named = [name for name in names if name.endswith(f"_{split}")]
        if split not in names and len(named) == 1:
            names[names.index(named[0])] = split
    return sorted(names, key=lambda name: (SPLITS.index(name) if name in SPLITS else len(SPLITS), name))


def _vocab_size(meta: Meta | None, tokenizer: StoredTokenizer | None) -> int | None:
    return meta.vocab_size if meta else tokenizer.vocab_size if tokenizer else None


def _tokenizer(folder: Path, other: Path | None, problems: list[str]) -> StoredTokenizer | None:
    """Return the tokenizer that gives the texts of tokens, if there is one."""
    path = next((path for path in (folder, other) if path and (path / TOKENIZER_FILE).is_file()), None)
    try:
        return load_tokenizer(path) if path else None
    except DataError as error:
        problems.append(str(error))
        return None


def _report(
    files: TokenFiles,
    found: SplitStatistics,
    pieces: Pieces,
    train: tuple[TokenFiles, SplitStatistics, Pieces] | None,
    vocab_size: int | None,
    tokenizer: StoredTokenizer | None,
    end_of_text: int | None,
) -> SplitReport:
    others = train[2] if train and train[1] is not found else None
    documents = end_of_text is not None
    return SplitReport(
        statistics=found,
        text_bytes=files.meta.splits[files.split].bytes if files.meta else None,
        lost_share=files.meta.splits[files.split].lost_share if files.meta else None,
        unigram_loss=unigram_loss(found.token_counts, train[1].token_counts, vocab_size or 0) if train else None,
        repeated_documents=pieces.documents.repeats() if documents else None,
        repeated_passages=pieces.passages.repeats(),
        documents_in_train=pieces.documents.repeats_of(others.documents) if documents and others else None,
        passages_in_train=pieces.passages.repeats_of(others.passages) if others else None,
        samples=[_excerpt(files, start, tokenizer, end_of_text) for start in found.starts],
    )


def _excerpt(files: TokenFiles, start: int, tokenizer: StoredTokenizer | None, end_of_text: int | None) -> Excerpt:
    tokens = files.span(start, start + SAMPLE_TOKENS)
    if end_of_text is not None:
        tokens = tokens[: np.argmax(np.append(tokens == end_of_text, True))]
    ids: Sequence[int] = tokens.tolist()
    return Excerpt(start, list(ids), tokenizer.decode(ids) if tokenizer else None)


def _documents_as_json(split: SplitReport, lengths: Lengths) -> dict[str, Any]:
    return {
        "documents": lengths.total,
        "empty": split.statistics.empty_documents,
        "min": int(lengths.lengths[0]),
        "median": lengths.quantile(0.5),
        "mean": lengths.mean,
        "p95": lengths.quantile(0.95),
        "max": int(lengths.lengths[-1]),
        "longer_than": {str(tokens): lengths.longer_than(tokens) for tokens in LONGER_THAN},
        "lengths": lengths.lengths.tolist(),
        "documents_of_length": lengths.documents.tolist(),
        "repeated": _repeats_as_json(split.repeated_documents),
        "in_train": _repeats_as_json(split.documents_in_train),
    }


def _repeats_as_json(repeats: Repeats | None) -> dict[str, Any] | None:
    return repeats and {
        **repeats._asdict(),
        "share": repeats.share,
        "share_of_tokens": repeats.share_of_tokens,
        "exact": repeats.looked_at == 1,
    }
