"""Sums the losses of a text's tokens over documents and over positions, and compares two models on the same text."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lmtrain.errors import DataError
from lmtrain.evaluate.statistics import Ratio, ratio
from lmtrain.evaluate.token_losses import Floats, Integers, Scored, TokenStream


@dataclass(frozen=True)
class PositionBin:
    """The mean loss in nats of the tokens that were predicted from `first` to `last` tokens before them."""

    first: int
    last: int
    tokens: int
    loss: float


@dataclass(frozen=True)
class Measurement:
    """The losses of a model on one text, summed in float64.

    Attributes:
        name: The name of the text.
        document_losses: The summed loss of each document in nats, (D,).
        document_tokens: The predicted tokens of each document, (D,).
        document_bytes: The UTF-8 bytes of each document, (D,); None if they are not known.
        bytes: The UTF-8 bytes of the predicted tokens' text; None if they are not known.
        position_losses: The summed loss by the number of tokens before, (T + 1,).
        position_tokens: The predicted tokens by the number of tokens before, (T + 1,).
    """

    name: str
    document_losses: Floats
    document_tokens: Integers
    document_bytes: Floats | None
    bytes: float | None
    position_losses: Floats
    position_tokens: Integers

    @property
    def tokens(self) -> int:
        """Return the number of predicted tokens."""
        return int(self.document_tokens.sum())

    @property
    def loss(self) -> float:
        """Return the mean loss in nats per token."""
        return float(self.document_losses.sum()) / self.tokens

    @property
    def bits_per_byte(self) -> float | None:
        """Return the loss in bits per byte of text."""
        return float(self.document_losses.sum()) / math.log(2) / self.bytes if self.bytes else None

    @property
    def over_documents(self) -> Ratio:
        """Return the mean loss with its standard error, for which documents are the independent units."""
        return ratio(self.document_losses, self.document_tokens)

    def by_position(self) -> list[PositionBin]:
        """Return the mean loss in bins of the number of tokens before: 1, 2, 3 to 4, 5 to 8, and so on."""
        bins, last = [], 1
        while last // 2 < len(self.position_tokens) - 1:
            first, end = last // 2 + 1, min(last, len(self.position_tokens) - 1)
            if tokens := int(self.position_tokens[first : end + 1].sum()):
                loss = float(self.position_losses[first : end + 1].sum()) / tokens
                bins.append(PositionBin(first, end, tokens, loss))
            last *= 2
        return bins


def measure(stream: TokenStream, scored: Iterable[Scored], block_size: int) -> Measurement:
    """Return the sums of the losses that `token_losses` yields for a text."""
    losses: list[Floats] = []
    tokens: list[Integers] = []
    by_position = np.zeros(block_size + 1)
    at_position = np.zeros(block_size + 1, np.int64)
    open_losses, open_tokens = 0.0, 0  # of the document that the next piece may go on with
    for piece in scored:
        number = np.cumsum(piece.opens)
        sums: Floats = np.bincount(number, piece.losses, int(number[-1]) + 1).astype(np.float64)
        counts = np.bincount(number, minlength=len(sums))
        sums[0] += open_losses
        counts[0] += open_tokens
        losses.append(sums[:-1])
        tokens.append(counts[:-1])
        open_losses, open_tokens = float(sums[-1]), int(counts[-1])
        by_position += np.bincount(piece.contexts, piece.losses, block_size + 1)
        at_position += np.bincount(piece.contexts, minlength=block_size + 1)
    document_losses = np.concatenate([*losses, [open_losses]])
    document_tokens = np.concatenate([*tokens, [open_tokens]]).astype(np.int64)
    kept = document_tokens > 0  # the first token has no loss, and may be a document of its own: an end of text
    document_bytes = stream.document_bytes
    if document_bytes is not None and len(document_bytes) != int(kept.sum()):
        document_bytes = None
    size = None if stream.bytes is None else stream.bytes * (stream.length - 1) / stream.length
    if document_bytes is not None:
        size = float(document_bytes.sum())
    return Measurement(
        stream.name, document_losses[kept], document_tokens[kept], document_bytes, size, by_position, at_position
    )


def together(name: str, parts: Sequence[Measurement]) -> Measurement:
    """Return the measurement of several texts as one, such as the sources of a mixture; each token counts equally."""
    if len(parts) == 1:
        return parts[0]
    sizes = [part.bytes for part in parts if part.bytes is not None]
    document_bytes = [part.document_bytes for part in parts if part.document_bytes is not None]
    arrays: dict[str, Any] = {
        field: np.concatenate([getattr(part, field) for part in parts])
        for field in ("document_losses", "document_tokens")
    }
    return Measurement(
        name,
        **arrays,
        document_bytes=np.concatenate(document_bytes) if len(document_bytes) == len(parts) else None,
        bytes=sum(sizes) if len(sizes) == len(parts) else None,
        position_losses=np.sum([part.position_losses for part in parts], axis=0),
        position_tokens=np.sum([part.position_tokens for part in parts], axis=0),
    )


def paired_difference(first: Measurement, other: Measurement, *, per_byte: bool) -> Ratio:
    """Return the loss of `other` minus that of `first` on the same documents, with its interval.

    The unit is a document: the difference of its summed losses, divided by the tokens or the bytes of all documents.
    So what makes a document hard for both models does not widen the interval.

    Args:
        first: The measurement to compare with.
        other: The measurement that is compared.
        per_byte: In bits per byte, for models with different tokenizers; otherwise in nats per token.

    Raises:
        DataError: They have other documents, other tokens without `per_byte`, or no known bytes with it.
    """
    a, b = first.document_losses, other.document_losses
    if len(a) != len(b):
        raise DataError(f"they don't pair: {len(a):,} and {len(b):,} documents")
    if not per_byte:
        if not np.array_equal(first.document_tokens, other.document_tokens):
            raise DataError("they don't pair: their documents have other tokens")
        return ratio(b - a, first.document_tokens)
    sizes = first.document_bytes
    if sizes is None or other.document_bytes is None:
        raise DataError("they can't be compared per byte: the sizes of the documents in bytes are not known")
    if not np.array_equal(sizes, other.document_bytes):
        raise DataError("they don't pair: their documents have other sizes in bytes; is it another text?")
    return ratio((b - a) / math.log(2), sizes)
