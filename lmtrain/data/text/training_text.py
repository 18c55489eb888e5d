"""The text of a corpus for training a tokenizer."""

from collections.abc import Iterator

from lmtrain.data.progress import DataProgress
from lmtrain.data.text.document import cut_text
from lmtrain.data.text.holdout import Holdout, uniform_hash
from lmtrain.data.text.source import Source

SAMPLE_CHARS = 10_000  # long texts are sampled in pieces of this size


class TrainingText:
    """The texts of a source; `total` is their size in bytes, or None if it is unknown."""

    def __init__(self, source: Source, holdout: Holdout, total: int | None, progress: DataProgress) -> None:
        self.source, self.holdout, self.total, self.progress = source, holdout, total, progress

    def texts(self) -> Iterator[str]:
        """Yield every text of every split, in order."""
        self.progress.stage("reading the vocabulary", self.total)
        for document in self.source.read():
            for split_text in self.holdout(document):
                self.progress.advance(len(split_text.text.encode()))
                yield split_text.text

    def train_sample(self, max_bytes: int) -> Iterator[str]:
        """Yield about `max_bytes` of the training split, evenly from all of it; its start if its size is unknown."""
        share = 1.0 if not self.total else min(1.0, max_bytes / self.total)
        self.progress.stage("training tokenizer", self.total and int(share * self.total))
        number, drawn = 0, 0
        for document in self.source.read():
            train = (found.text for found in self.holdout(document) if found.split == "train")
            for piece in (piece for text in train for piece in cut_text(text, SAMPLE_CHARS)):
                number += 1
                if share < 1 and uniform_hash(number.to_bytes(8, "little")) >= share:
                    continue
                if self.total is None and drawn >= max_bytes:
                    return
                size = len(piece.encode())
                drawn += size
                self.progress.advance(size)
                yield piece
