"""Tokenizers that a corpus can be prepared with, as `prepare.tokenizer` describes them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from pydantic import PositiveInt
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from lmtrain.data import pretrained_tokenizer
from lmtrain.data.byte_level_bpe import BYTE_ALPHABET, gpt2_encoder, tiktoken_encoder, tokenizer_of_tiktoken
from lmtrain.data.stored_tokenizer import (
    END_OF_TEXT,
    Encode,
    Ids,
    StoredTokenizer,
    eos_tokens,
    read_tokenizer_file,
    unknown_characters,
    well_known_ends,
)
from lmtrain.data.text.document import cut_text

if TYPE_CHECKING:
    import tiktoken

# The memory that training takes is that of the words that differ: 105 to 130 bytes for each of their bytes, measured on
# code (32,000 entries), on random words and on Chinese, whose words are whole clauses. 100 MB of code took 0.8 GB, as
# little as 50 MB of Chinese 4.4 GB. So `auto` stops at 10 MB of different words, which takes 1.0 to 1.4 GB.
AUTO_TRAIN_BYTES = 100_000_000
AUTO_WORD_BYTES = 10_000_000
PIECE_CHARS = 50_000  # long texts are trained on in pieces, which keeps all cores busy

# About what GPT-2's pattern takes for one word, in UTF-8.
_WORD = re.compile(rb" ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[!-/:-@\[-`{-~]+|[\x00-\x20]+")


class Corpus(Protocol):
    """The text that a tokenizer is trained on; each call reads it anew."""

    def texts(self) -> Iterator[str]:
        """Yield every text of every split, in order."""

    def train_sample(self, max_bytes: int) -> Iterator[str]:
        """Yield about so many bytes of the train split's text, drawn evenly."""


class CorpusTokenizer(Protocol):
    """What `prepare.tokenizer` builds; picklable, as processes that encode get a copy."""

    kind: str  # recorded in meta.json

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        """Return the tokenizer, trained on the corpus or made elsewhere."""

    def encoder(self, stored: StoredTokenizer) -> Encode:
        """Return the fastest way to a text's ids by what `fit` gave, without an end of text.

        Raises:
            ValueError: from encoding, for text that the tokenizer can't encode.
        """


class Bytes:
    """The bytes of UTF-8 as ids 0 to 255; 256 is `<|endoftext|>`."""

    kind = "bytes"

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        tokenizer = Tokenizer(models.BPE(vocab={BYTE_ALPHABET[byte]: byte for byte in range(256)}, merges=[]))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        tokenizer.add_special_tokens([END_OF_TEXT])
        return StoredTokenizer(tokenizer, end_of_text=256)

    def encoder(self, stored: StoredTokenizer) -> Encode:
        return lambda texts: [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.uint32) for text in texts]


class Characters:
    """One id a character of the corpus, sorted by code point; no end-of-text id."""

    kind = "characters"

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        seen = np.zeros(0x110000, dtype=bool)
        for text in corpus.texts():
            seen[_code_points(text)] = True
        characters = map(chr, np.flatnonzero(seen).tolist())
        return tokenizer_of_characters({character: number for number, character in enumerate(characters)})

    def encoder(self, stored: StoredTokenizer) -> Encode:
        unknown = np.uint32(0xFFFFFFFF)
        id_of = np.full(0x110000, unknown)
        for character, number in stored.tokenizer.get_vocab().items():
            id_of[ord(character)] = number

        def encode(texts: Sequence[str]) -> list[Ids]:
            encoded = [id_of[_code_points(text)] for text in texts]
            if any((ids == unknown).any() for ids in encoded):
                known = stored.tokenizer.get_vocab()
                raise ValueError(unknown_characters(set().union(*texts) - known.keys()))
            return encoded

        return encode


def tokenizer_of_characters(ids: Mapping[str, int]) -> StoredTokenizer:
    """Return the tokenizer that gives every character its id; there is no end of text."""
    tokenizer = Tokenizer(models.WordLevel(dict(ids)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return StoredTokenizer(tokenizer, end_of_text=None)


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class BPE:
    """Byte-level byte-pair encoding, as in GPT-2: any text round-trips. Id 0 is `<|endoftext|>`.

    It is trained on about `train_bytes` of the text that is not held out; `auto` is 100 MB, or less where words hardly
    repeat, so that training takes less than 1.5 GB of memory. Small corpora give fewer than `vocab_size` entries.
    """

    kind = "bpe"

    def __init__(self, vocab_size: PositiveInt, train_bytes: PositiveInt | Literal["auto"] = "auto") -> None:
        if vocab_size < 257:
            raise ValueError(
                f"prepare.tokenizer.vocab_size={vocab_size}: 256 bytes and <|endoftext|> need at least 257"
            )
        self.vocab_size, self.train_bytes = vocab_size, train_bytes

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=self.vocab_size,
            special_tokens=[END_OF_TEXT],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(self._text(corpus), trainer)
        return StoredTokenizer(tokenizer, end_of_text=0)

    def encoder(self, stored: StoredTokenizer) -> Encode:
        return gpt2_encoder(stored, END_OF_TEXT)

    def _text(self, corpus: Corpus) -> Iterator[str]:
        if isinstance(self.train_bytes, int):
            for text in corpus.train_sample(self.train_bytes):
                yield from cut_text(text, PIECE_CHARS)
            return
        texts = corpus.train_sample(AUTO_TRAIN_BYTES)
        # As UTF-8, since a str can take four times as much.
        sample = [piece.encode() for text in texts for piece in cut_text(text, PIECE_CHARS)]
        share = _share_to_train_on(sample)
        for number, data in enumerate(sample):
            if int((number + 1) * share) > int(number * share):  # evenly
                yield data.decode()


def _share_to_train_on(sample: Sequence[bytes]) -> float:
    """Return a share whose different words stay below AUTO_WORD_BYTES, if they grow as fast as the text."""
    tenth = sample[::10]
    words = {word for piece in tenth for word in _WORD.findall(piece)}
    expected = sum(map(len, words)) * sum(map(len, sample)) / max(1, sum(map(len, tenth)))
    return min(1.0, AUTO_WORD_BYTES / max(1.0, expected))


class Pretrained:
    """Any tokenizer.json, a Hugging Face tokenizer folder, or the name of one on the hub, such as `gpt2`.

    `end_of_text` is a token of its vocabulary; None: documents run into each other; auto: its own `eos_token`, or a
    well-known one. What it adds to texts (BOS, padding) and cuts off is left out.

    Raises:
        ValueError: there is no such file or folder; from `fit`, also if there is no such tokenizer or token.
    """

    kind = "pretrained"

    def __init__(self, path: str, end_of_text: str | None = "auto") -> None:
        means_a_file = path.startswith((".", "/", "~")) or path.endswith(".json") or path.count("/") > 1
        if not path or (means_a_file and not Path(path).expanduser().exists()):
            raise ValueError(
                f"prepare.tokenizer.path={path}: no such file or folder in {Path.cwd()}; give a tokenizer.json, a "
                "folder with one, or the name of one on the Hugging Face hub"
            )
        self.path, self.end_of_text = path, end_of_text

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        try:
            with pretrained_tokenizer.find_tokenizer_file(self.path) as file:
                tokenizer, said = read_tokenizer_file(file), eos_tokens(file.parent)
        except ValueError as error:
            raise ValueError(f"prepare.tokenizer.path={self.path}: {error}") from error
        return StoredTokenizer(tokenizer, _end_of_text(tokenizer, self.end_of_text, said))

    def encoder(self, stored: StoredTokenizer) -> Encode:
        return stored.encode_batch


class TikToken:
    """An encoding of the tiktoken package, `cl100k_base` say, made into a tokenizer.json with the same ids.

    `end_of_text` as in `Pretrained`.

    Raises:
        ValueError: tiktoken is missing, or has no such encoding; from `fit`, also if it can't be fetched or made.
    """

    kind = "tiktoken"

    def __init__(self, encoding: str, end_of_text: str | None = "auto") -> None:
        self.encoding, self.end_of_text = encoding, end_of_text
        try:
            from tiktoken import list_encoding_names
        except ImportError as error:
            raise self._mistake("needs the tiktoken package: pip install 'lmtrain[tiktoken]'") from error
        if encoding not in list_encoding_names():
            raise self._mistake(f"no such encoding; there are {', '.join(list_encoding_names())}")

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        try:
            tokenizer = tokenizer_of_tiktoken(self._load())
        except ValueError as error:
            raise self._mistake(str(error)) from error
        return StoredTokenizer(tokenizer, _end_of_text(tokenizer, self.end_of_text, said=[]))

    def encoder(self, stored: StoredTokenizer) -> Encode:
        return tiktoken_encoder(self._load(), stored)

    def _load(self) -> "tiktoken.Encoding":
        import tiktoken

        try:
            return tiktoken.get_encoding(self.encoding)
        except Exception as error:  # of many kinds: no network, a damaged download, a plugin's own
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"could not be fetched ({reason[0]}); fetch it where there is a network, with TIKTOKEN_CACHE_DIR "
                "set to a folder, and bring that folder here"
            ) from error

    def _mistake(self, what: str) -> ValueError:
        return ValueError(f"prepare.tokenizer.encoding={self.encoding}: {what}")


def _end_of_text(tokenizer: Tokenizer, asked: str | None, said: Sequence[str | None]) -> int | None:
    """Return the id of the token asked for; `said` is what the tokenizer's own settings say."""
    token = asked
    special = sorted(added.content for added in tokenizer.get_added_tokens_decoder().values())
    named = f"its special tokens are {', '.join(special[:10])}" if special else "it has no special tokens"
    if asked == "auto":
        ends = said or well_known_ends(tokenizer)
        if not ends:
            raise ValueError(
                f"prepare.tokenizer.end_of_text=auto: the tokenizer does not say which token ends a text ({named}); "
                "name one, or null to let documents run into each other"
            )
        token = ends[0]
    if token is None:
        return None
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(
            f"prepare.tokenizer.end_of_text={asked}: {token!r} is not in the vocabulary ({named}); name another, or "
            "null to let documents run into each other"
        )
    return found
