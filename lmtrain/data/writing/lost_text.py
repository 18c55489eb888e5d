"""Text that no token stands for: a tokenizer may drop what is not in its vocabulary, or call it unknown.

A text is held against what its tokens decode to, by how often each character is in both. White space does not count, as
many decoders join words anew, nor does what the normalizer changes on purpose: capitals, accents, ligatures.
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

SAMPLE_CHARS = 1 << 15  # looked at of a batch's split: 2% of it, or all of a small one
PIECES = 32  # that they are taken in, spread over the batch

# All bytes that UTF-8 has, in characters most of which are in no vocabulary. Who knows them knows every text.
_FIRST_BYTES = (*range(0x80, 0x800, 0x40), *range(0x800, 0xD000, 0x1000), 0xD000, 0xE000, 0xF000, 0x1F000)
_CODE_POINTS = (*range(0x80), *_FIRST_BYTES, *range(0x40000, 0x110000, 0x40000), *range(0x10FF80, 0x10FFC0))
ALL_BYTES = "".join(map(chr, _CODE_POINTS))
# Tokenizers leave out signs on purpose: T5's has no braces, 3% of code. Without every tenth character, a text can no
# longer be read.
MAX_LOST_SHARE = 0.1
SPACE_MARK = "\u2581"  # of SentencePiece


Share = Annotated[float, Interval(ge=0, le=1)]


class LostText(NamedTuple):
    """UTF-8 bytes looked at, and how many of them no token stands for."""

    checked_bytes: int = 0
    lost_bytes: int = 0


class MeasuredText(Protocol):
    """Encoded text: its UTF-8 bytes, how many of them were checked, and how many of those are lost."""

    @property
    def bytes(self) -> int: ...

    @property
    def checked_bytes(self) -> int: ...

    @property
    def lost_bytes(self) -> int: ...


def check_lost_text(texts: Iterable[MeasuredText], total_bytes: int, max_lost_share: float, setting: str) -> None:
    """Check that not more than a share of the text is lost; `total_bytes` are to come in all.

    Raises:
        ValueError: it is, even if nothing is lost of what is still to come.
    """
    texts = list(texts)
    done = sum(text.bytes for text in texts)
    lost = sum(text.bytes * text.lost_bytes / max(1, text.checked_bytes) for text in texts)
    if lost > max_lost_share * total_bytes:
        raise ValueError(
            f"prepare.tokenizer: has no tokens for {percent(lost / done)} of the text, which is dropped or unknown; "
            "one that is made from this text (prepare/tokenizer=bpe) keeps all of it, or allow the loss with "
            f"{setting}={math.ceil(100 * lost / done) / 100:g}"
        )


class LostTextMeter:
    """Measures lost text, on a sample of it."""

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
    """Return the id of the token for what is not in the vocabulary; -1 if there is none."""
    model = stored.tokenizer.model
    if isinstance(model, models.Unigram):  # which says it in its JSON alone
        number = json.loads(model.__getstate__())["unk_id"]
        return -1 if number is None else int(number)
    found = None if model.unk_token is None else stored.tokenizer.token_to_id(model.unk_token)
    return -1 if found is None else found


def _keeps_every_text(stored: StoredTokenizer, unknown: int) -> bool:
    """Return whether the tokenizer has a token for every byte, or stops at a character that it does not know."""
    if unknown < 0 and isinstance(stored.tokenizer.model, models.WordLevel):
        return True
    try:
        return _decode(stored, stored.encode(ALL_BYTES)) == ALL_BYTES
    except ValueError:
        return False


def _decode(stored: StoredTokenizer, ids: Sequence[int]) -> str:
    """Return the text of ids. Bytes that are special tokens, as some tokenizers have them, are text here, too."""
    return stored.decode(ids, skip_special_tokens=False)


def _sample(texts: Sequence[str]) -> list[str]:
    """Return pieces of the texts, spread evenly over them; all texts if they are short."""
    if sum(map(len, texts)) <= SAMPLE_CHARS:
        return list(texts)
    text = "\n".join(texts)
    return [text[start : start + SAMPLE_CHARS // PIECES] for start in range(0, len(text), -(-len(text) // PIECES))]


def _characters(text: str) -> npt.NDArray[np.int64]:
    """Return how often each character that counts is in the text, by code point."""
    seen = "".join(text.split()).replace(SPACE_MARK, "")
    return np.bincount(np.frombuffer(seen.encode("utf-32-le", "surrogatepass"), "<u4"), minlength=0x110000)


def _missing_share(wanted: npt.NDArray[np.int64], there: npt.NDArray[np.int64]) -> float:
    """Return the share of UTF-8 bytes of the wanted characters that are not there as often."""
    used = np.flatnonzero(wanted)
    sizes = 1 + (used >= 0x80) + (used >= 0x800) + (used >= 0x10000)
    missing = np.maximum(0, wanted[used] - there[used])
    return float(sizes @ missing) / max(1, int(sizes @ wanted[used]))
