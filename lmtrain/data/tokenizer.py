"""Tokenizers for preparing a corpus, as described by `prepare.tokenizer`."""

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

# Training needs memory for the distinct words: 105 to 130 bytes for each of their bytes. This was measured on code
# (32,000 entries), on random words and on Chinese, where a "word" is a whole clause. 100 MB of code needed 0.8 GB, but
# 50 MB of Chinese needed 4.4 GB. So `auto` stops at 10 MB of distinct words, which need 1.0 to 1.4 GB.
AUTO_TRAIN_BYTES = 100_000_000
AUTO_WORD_BYTES = 10_000_000
PIECE_CHARS = 50_000  # long texts are cut into pieces, so that all cores have work

# Roughly the words of GPT-2's pattern, in UTF-8.
_WORD = re.compile(rb" ?[A-Za-z\x80-\xff]+| ?[0-9]+| ?[!-/:-@\[-`{-~]+|[\x00-\x20]+")


class Corpus(Protocol):
    """The text that a tokenizer is trained on; each call reads it again."""

    def texts(self) -> Iterator[str]:
        """Yield every text of every split, in order."""

    def train_sample(self, max_bytes: int) -> Iterator[str]:
        """Yield about `max_bytes` bytes of the train split's text, drawn evenly from all of it."""


class CorpusTokenizer(Protocol):
    """The interface of the objects that `prepare.tokenizer` builds.

    They must be picklable, because each encoding process gets a copy.
    """

    kind: str  # recorded in meta.json

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        """Return the tokenizer, either trained on the corpus or loaded."""

    def encoder(self, stored: StoredTokenizer) -> Encode:
        """Return the fastest function that encodes texts with `stored`, the result of `fit`, without end-of-text ids.

        The function raises ValueError for text that the tokenizer can't encode.
        """


class Bytes:
    """A tokenizer whose ids 0 to 255 are the bytes of UTF-8; id 256 is `<|endoftext|>`."""

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
    """A tokenizer with one id per character of the corpus, sorted by code point; it has no end-of-text id."""

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
    """Return the tokenizer with the given id for each character, and without an end-of-text id."""
    tokenizer = Tokenizer(models.WordLevel(dict(ids)))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return StoredTokenizer(tokenizer, end_of_text=None)


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le"), dtype="<u4")


class BPE:
    """Byte-level byte-pair encoding as in GPT-2, trained on the corpus. Any text round-trips. Id 0 is `<|endoftext|>`.

    Args:
        vocab_size: Number of entries, at least 257. A small corpus gives fewer.
        train_bytes: Bytes of training text to train the tokenizer on; held-out text is never used. `auto` is 100 MB,
            or less if few words repeat, so that training needs less than 1.5 GB of memory.
    """

    kind = "bpe"

    def __init__(self, vocab_size: PositiveInt, train_bytes: PositiveInt | Literal["auto"] = "auto") -> None:
        if vocab_size < 257:
            raise ValueError(
                f"prepare.tokenizer.vocab_size={vocab_size}: must be at least 257, for 256 bytes and <|endoftext|>"
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
        # UTF-8, because a str can need four times the memory.
        sample = [piece.encode() for text in texts for piece in cut_text(text, PIECE_CHARS)]
        share = _share_to_train_on(sample)
        for number, data in enumerate(sample):
            if int((number + 1) * share) > int(number * share):  # takes pieces at even distances
                yield data.decode()


def _share_to_train_on(sample: Sequence[bytes]) -> float:
    """Return the share of the sample whose distinct words stay below AUTO_WORD_BYTES.

    It is estimated from a tenth of the sample, and assumes that the distinct words grow as fast as the text.
    """
    tenth = sample[::10]
    words = {word for piece in tenth for word in _WORD.findall(piece)}
    expected = sum(map(len, words)) * sum(map(len, sample)) / max(1, sum(map(len, tenth)))
    return min(1.0, AUTO_WORD_BYTES / max(1.0, expected))


class Pretrained:
    """A tokenizer that already exists. It is used without its BOS tokens, padding and truncation.

    Args:
        path: A tokenizer.json, a Hugging Face tokenizer folder, or the name of a tokenizer on the hub, such as `gpt2`.
        end_of_text: The token that ends each document. null puts nothing between documents; `auto` is the tokenizer's
            own `eos_token`, or a well-known one.

    Raises:
        ValueError: there is no such file or folder. `fit` also raises it if there is no such tokenizer or token.
    """

    kind = "pretrained"

    def __init__(self, path: str, end_of_text: str | None = "auto") -> None:
        means_a_file = path.startswith((".", "/", "~")) or path.endswith(".json") or path.count("/") > 1
        if not path or (means_a_file and not Path(path).expanduser().exists()):
            raise ValueError(
                f"prepare.tokenizer.path={path}: no such file or folder in {Path.cwd()}; give a tokenizer.json, a "
                "folder with one, or the name of a tokenizer on the Hugging Face hub"
            )
        self.path, self.end_of_text = path, end_of_text

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        try:
            with pretrained_tokenizer.find_tokenizer_file(self.path) as file:
                tokenizer, eos = read_tokenizer_file(file), eos_tokens(file.parent)
        except ValueError as error:
            raise ValueError(f"prepare.tokenizer.path={self.path}: {error}") from error
        return StoredTokenizer(tokenizer, _end_of_text(tokenizer, self.end_of_text, eos))

    def encoder(self, stored: StoredTokenizer) -> Encode:
        return stored.encode_batch


class TikToken:
    """An encoding of the tiktoken package, stored as a tokenizer.json with the same ids.

    Args:
        encoding: The name of the encoding, such as `cl100k_base`.
        end_of_text: The token that ends each document. null puts nothing between documents; `auto` is the encoding's
            `<|endoftext|>`, or a well-known one.

    Raises:
        ValueError: tiktoken is missing, or has no such encoding. `fit` also raises it if the encoding can't be fetched
            or converted.
    """

    kind = "tiktoken"

    def __init__(self, encoding: str, end_of_text: str | None = "auto") -> None:
        self.encoding, self.end_of_text = encoding, end_of_text
        try:
            from tiktoken import list_encoding_names
        except ImportError as error:
            raise self._mistake("needs the tiktoken package: pip install 'lmtrain[tiktoken]'") from error
        if encoding not in list_encoding_names():
            raise self._mistake(f"no such encoding; choose one of {', '.join(list_encoding_names())}")

    def fit(self, corpus: Corpus) -> StoredTokenizer:
        try:
            tokenizer = tokenizer_of_tiktoken(self._load())
        except ValueError as error:
            raise self._mistake(str(error)) from error
        return StoredTokenizer(tokenizer, _end_of_text(tokenizer, self.end_of_text, eos=[]))

    def encoder(self, stored: StoredTokenizer) -> Encode:
        return tiktoken_encoder(self._load(), stored)

    def _load(self) -> "tiktoken.Encoding":
        import tiktoken

        try:
            return tiktoken.get_encoding(self.encoding)
        except Exception as error:  # many types: no network, a damaged download, a plugin's own error
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ValueError(
                f"could not be fetched ({reason[0]}); without a network, load it on another machine with "
                "TIKTOKEN_CACHE_DIR set to a folder, copy that folder here, and set TIKTOKEN_CACHE_DIR to it"
            ) from error

    def _mistake(self, what: str) -> ValueError:
        return ValueError(f"prepare.tokenizer.encoding={self.encoding}: {what}")


def _end_of_text(tokenizer: Tokenizer, asked: str | None, eos: Sequence[str | None]) -> int | None:
    """Return the id of the token asked for; `eos` are the `eos_token`s in the tokenizer's own settings."""
    token = asked
    special = sorted(added.content for added in tokenizer.get_added_tokens_decoder().values())
    named = f"its special tokens are {', '.join(special[:10])}" if special else "it has no special tokens"
    if asked == "auto":
        ends = eos or well_known_ends(tokenizer)
        if not ends:
            raise ValueError(
                f"prepare.tokenizer.end_of_text=auto: the tokenizer does not say which token ends a text ({named}); "
                "name one, or use null to put nothing between documents"
            )
        token = ends[0]
    if token is None:
        return None
    found = tokenizer.token_to_id(token)
    if found is None:
        raise ValueError(
            f"prepare.tokenizer.end_of_text={asked}: {token!r} is not in the vocabulary ({named}); name another token, "
            "or use null to put nothing between documents"
        )
    return found
