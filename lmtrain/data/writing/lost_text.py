"""Measures lost text: text that is not in a tokenizer's vocabulary, which it drops or replaces by an unknown token.

A text is compared with the decoded text of its tokens, by the number of times that each character occurs in both.
Whitespace does not count, because many decoders join words in their own way. Intended changes by the normalizer
(capitals, accents, ligatures) do not count either.
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from annotated_types import Interval
from tokenizers import models

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.data.text.document import utf8_bytes
from lmtrain.terminal.units import percent

SAMPLE_CHARS = 1 << 15  # characters checked per split of a batch: about 2%, or all of a small batch
PIECES = 32  # pieces that the sample consists of, spread over the batch

# All bytes of UTF-8, in characters that are mostly in no vocabulary. A tokenizer that keeps them keeps every text.
_FIRST_BYTES = (*range(0x80, 0x800, 0x40), *range(0x800, 0xD000, 0x1000), 0xD000, 0xE000, 0xF000, 0x1F000)
_CODE_POINTS = (*range(0x80), *_FIRST_BYTES, *range(0x40000, 0x110000, 0x40000), *range(0x10FF80, 0x10FFC0))
ALL_BYTES = "".join(map(chr, _CODE_POINTS))
# Some tokenizers lack a few characters on purpose: T5's has no braces, which are 3% of code. A text that has lost a
# tenth of its characters can no longer be read.
MAX_LOST_SHARE = 0.1
SPACE_MARK = "\u2581"  # SentencePiece's mark for a space


Share = Annotated[float, Interval(ge=0, le=1)]


class LostText(NamedTuple):
    """The number of UTF-8 bytes checked, and how many of them have no token."""

    checked_bytes: int = 0
    lost_bytes: int = 0


class MeasuredText(Protocol):
    """Encoded text, with its UTF-8 bytes, the number of checked bytes, and how many of the checked bytes are lost."""

    @property
    def bytes(self) -> int: ...

    @property
    def checked_bytes(self) -> int: ...

    @property
    def lost_bytes(self) -> int: ...


def check_lost_text(texts: Iterable[MeasuredText], total_bytes: int, max_lost_share: float, setting: str) -> None:
    """Check that at most a share of the text is lost; `total_bytes` is the size of the whole text.

    Raises:
        ValueError: more is lost already, even if nothing is lost from now on.
    """
    texts = list(texts)
    done = sum(text.bytes for text in texts)
    lost = sum(text.bytes * text.lost_bytes / max(1, text.checked_bytes) for text in texts)
    if lost > max_lost_share * total_bytes:
        raise ValueError(
            f"prepare.tokenizer: has no tokens for {percent(lost / done)} of the text, which would be lost; use a "
            "tokenizer made from this text (prepare/tokenizer=bpe), which keeps all of it, or allow the loss with "
            f"{setting}={math.ceil(100 * lost / done) / 100:g}"
        )


class LostTextMeter:
    """Measures on a sample how much text is lost."""

    def __init__(self, stored: StoredTokenizer) -> None:
        self._stored = stored
        self._unknown = _unknown_id(stored)
        self.loses_nothing = _keeps_every_text(stored, self._unknown)

    def __call__(self, texts: Sequence[str]) -> LostText:
        if self.loses_nothing:
            return LostText()
        sample = _sample(texts)
        encoded = self._stored.encode_batch(sample)
        kept = _characters("".join(_decode(self._stored, ids[ids != self._unknown].tolist()) for ids in encoded))
        normalizer = self._stored.tokenizer.normalizer
        lost = _missing_share(_characters("".join(sample)), kept)
        if lost and normalizer is not None:
            normalized = "".join(normalizer.normalize_str(text) for text in sample)
            lost = min(lost, _missing_share(_characters(normalized), kept))
        checked = sum(map(utf8_bytes, sample))
        return LostText(checked, round(lost * checked))


def _unknown_id(stored: StoredTokenizer) -> int:
    """Return the id of the token for unknown text; -1 if there is none."""
    model = stored.tokenizer.model
    if isinstance(model, models.Unigram):  # only its JSON has the id
        number = json.loads(model.__getstate__())["unk_id"]
        return -1 if number is None else int(number)
    found = None if model.unk_token is None else stored.tokenizer.token_to_id(model.unk_token)
    return -1 if found is None else found


def _keeps_every_text(stored: StoredTokenizer, unknown: int) -> bool:
    """Return whether the tokenizer has a token for every byte, or raises an error for an unknown character."""
    if unknown < 0 and isinstance(stored.tokenizer.model, models.WordLevel):
        return True
    try:
        return _decode(stored, stored.encode(ALL_BYTES)) == ALL_BYTES
    except ValueError:
        return False


def _decode(stored: StoredTokenizer, ids: Sequence[int]) -> str:
    """Return the text of ids, including special tokens, because some tokenizers have bytes as special tokens."""
    return stored.decode(ids, skip_special_tokens=False)


def _sample(texts: Sequence[str]) -> list[str]:
    """Return pieces of the texts, spread evenly over them; all texts if they are short."""
    if sum(map(len, texts)) <= SAMPLE_CHARS:
        return list(texts)
    text = "\n".join(texts)
    return [text[start : start + SAMPLE_CHARS // PIECES] for start in range(0, len(text), -(-len(text) // PIECES))]


def _characters(text: str) -> npt.NDArray[np.int64]:
    """Return the count of each code point in the text, without whitespace."""
    seen = "".join(text.split()).replace(SPACE_MARK, "")
    return np.bincount(np.frombuffer(seen.encode("utf-32-le", "surrogatepass"), "<u4"), minlength=0x110000)


def _missing_share(wanted: npt.NDArray[np.int64], there: npt.NDArray[np.int64]) -> float:
    """Return the share of the wanted characters, in UTF-8 bytes, that are missing in `there`."""
    used = np.flatnonzero(wanted)
    sizes = 1 + (used >= 0x80) + (used >= 0x800) + (used >= 0x10000)
    missing = np.maximum(0, wanted[used] - there[used])
    return float(sizes @ missing) / max(1, int(sizes @ wanted[used]))
