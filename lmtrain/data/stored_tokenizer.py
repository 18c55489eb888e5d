"""Stores and loads tokenizers: `tokenizer.json`, and `tokenizer_config.json` so that transformers loads the folder."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer, models

from lmtrain.data.meta import MAX_JSON_BYTES, Meta, Split, TokenizerFile, smallest_dtype
from lmtrain.data.tokenizer_trial import try_tokenizer
from lmtrain.errors import DataError
from lmtrain.files.durable import sha256_of, write_atomically
from lmtrain.files.limited import read_json_limited, read_limited

TOKENIZER_FILE = "tokenizer.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
MAX_TOKENIZER_BYTES = 256 << 20  # a million tokens need about 80 MB

END_OF_TEXT = "<|endoftext|>"
# The end-of-text tokens of GPT-2 and most later models, Llama 3, SentencePiece, Gemma and DeepSeek.
WELL_KNOWN_ENDS = (END_OF_TEXT, "<|end_of_text|>", "</s>", "<eos>", "<｜end▁of▁sentence｜>")

Ids = npt.NDArray[np.uint32]
Encode = Callable[[Sequence[str]], list[Ids]]


@dataclass(frozen=True)
class StoredTokenizer:
    """A tokenizer that is stored with token files and runs; `end_of_text` is the id that ends each document, or None.

    It encodes text exactly: nothing is added or left out, and "<|endoftext|>" in a text is ordinary text. The settings
    of the given `tokenizer` are changed accordingly.
    """

    tokenizer: Tokenizer
    end_of_text: int | None

    def __post_init__(self) -> None:
        self.tokenizer.encode_special_tokens = True  # tokenizer.json does not store this setting
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()
        if self.tokenizer.num_special_tokens_to_add(is_pair=False):  # for example a BOS template
            self.tokenizer.post_processor = None

    def __reduce__(self) -> tuple[Any, ...]:
        return StoredTokenizer, (self.tokenizer, self.end_of_text)  # __post_init__ runs again in the other process

    @cached_property
    def vocab_size(self) -> int:
        """Return the largest id + 1; there may be unused ids below it."""
        return max(self.tokenizer.get_vocab().values(), default=-1) + 1

    def encode(self, text: str) -> list[int]:
        """Return the text's ids.

        Raises:
            ValueError: the text has characters that the tokenizer does not know, or that are not valid Unicode.
        """
        ids: list[int] = self.encode_batch([text])[0].tolist()
        return ids

    def encode_batch(self, texts: Sequence[str]) -> list[Ids]:
        """Return the ids of several texts, encoded on all cores unless TOKENIZERS_PARALLELISM=false."""
        try:
            encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        except BaseException as error:
            _raise_unless_of_the_library(error)
            characters = set().union(*texts)
            surrogates = [character for character in characters if "\ud800" <= character <= "\udfff"]
            by_character = isinstance(self.tokenizer.model, models.WordLevel)
            if unknown := surrogates or [
                character for character in characters if by_character and self.tokenizer.token_to_id(character) is None
            ]:
                raise ValueError(unknown_characters(unknown)) from error
            raise ValueError(f"the tokenizer can't encode the text ({error})") from error
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of the ids; it is the encoded text if the tokenizer loses nothing.

        Raises:
            ValueError: the tokenizer's decoder fails.
        """
        try:
            return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            _raise_unless_of_the_library(error)
            raise ValueError(f"the tokenizer can't decode the tokens ({error})") from error


def _raise_unless_of_the_library(error: BaseException) -> None:
    """Raise the error again unless the tokenizers library may have raised it: an Exception, or a panic in Rust."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error


def unknown_characters(characters: Iterable[str]) -> str:
    """Return the error message about characters that a tokenizer does not know."""
    named = "".join(sorted(characters)[:20])
    return f"the tokenizer does not know {named!r}"


def save_tokenizer(folder: Path, stored: StoredTokenizer) -> None:
    """Write both files, always with the same bytes; they are on the disk when this returns."""
    end = None if stored.end_of_text is None else stored.tokenizer.id_to_token(stored.end_of_text)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end,
        "clean_up_tokenization_spaces": False,  # transformers < 5 would remove spaces from decoded text
    }
    write_atomically(folder / TOKENIZER_FILE, stored.tokenizer.to_str())
    write_atomically(folder / TOKENIZER_CONFIG_FILE, json.dumps(config, indent=2) + "\n")


def load_tokenizer(folder: Path, name: str = TOKENIZER_FILE) -> StoredTokenizer:
    """Return the tokenizer in a folder, whichever program has saved it.

    If the folder's settings do not mention `eos_token`, the end of text is a well-known special token, if there is one.

    Raises:
        DataError: a file is missing or damaged.
    """
    tokenizer = read_tokenizer_file(folder / name)
    ends = eos_tokens(folder) or well_known_ends(tokenizer)
    token = ends[0] if ends else None
    end_of_text = None if token is None else tokenizer.token_to_id(token)
    if token is not None and end_of_text is None:
        raise DataError(f"{folder / TOKENIZER_CONFIG_FILE}: eos_token {token!r} is not in {name}")
    return StoredTokenizer(tokenizer, end_of_text)


def copy_tokenizer(source: Path, folder: Path) -> bool:
    """Copy the files of a stored tokenizer; return False if `source` has none."""
    for name in (TOKENIZER_FILE, TOKENIZER_CONFIG_FILE):
        if (source / name).is_file():
            write_atomically(folder / name, read_limited(source / name, MAX_TOKENIZER_BYTES).decode())
    return (source / TOKENIZER_FILE).is_file()


def meta_of_splits(folder: Path, kind: str, splits: dict[str, Split], recipe: dict[str, Any]) -> Meta:
    """Return the meta of splits that were made with the tokenizer stored in a folder."""
    stored = load_tokenizer(folder)
    return Meta(
        dtype=smallest_dtype(stored.vocab_size),
        vocab_size=stored.vocab_size,
        tokenizer=TokenizerFile(kind, TOKENIZER_FILE, sha256_of(folder / TOKENIZER_FILE)),
        end_of_text=stored.end_of_text,
        splits=splits,
        recipe=recipe,
    )


def read_tokenizer_file(path: Path) -> Tokenizer:
    """Return the tokenizer in a `tokenizer.json`, after a separate process has loaded and used it.

    Raises:
        DataError: the file is not a tokenizer, or would crash a process or fill its memory.
    """
    try:
        content = read_limited(path, MAX_TOKENIZER_BYTES)
        try_tokenizer(content)
        return Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises nothing more precise
        raise DataError(f"{path}: not a file that the tokenizers library reads ({error})") from error


def eos_tokens(folder: Path) -> list[str | None]:
    """Return the `eos_token` in the folder's settings, which may be null; an empty list if they do not mention it.

    Raises:
        DataError: a file is damaged.
    """
    for path in (folder / TOKENIZER_CONFIG_FILE, folder / "special_tokens_map.json"):
        if not path.is_file():
            continue
        try:
            settings = dict(read_json_limited(path, MAX_JSON_BYTES))
            if "eos_token" not in settings:
                continue
            token = settings["eos_token"]
            token = token["content"] if isinstance(token, dict) else token
            if not isinstance(token, str | None):
                raise TypeError(f"eos_token {token!r}")
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}: not the settings of a tokenizer ({type(error).__name__}: {error})") from error
        return [token]
    return []


def well_known_ends(tokenizer: Tokenizer) -> list[str | None]:
    """Return the well-known end-of-text tokens among its special tokens.

    A token that is not special may be a word of the text: `</s>` is a tag in HTML.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    return [token for token in WELL_KNOWN_ENDS if token in special]
