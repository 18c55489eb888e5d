"""A tokenizer in the terms of llama.cpp, which gives the same ids for any text.

Source: llama.cpp, `src/llama-vocab.cpp`. Its kinds of vocabularies are `gpt2` (byte-level BPE, which cuts text with the
pattern that `pre` names) and `rwkv` (the longest token that fits), among others.
"""

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import models

from lmtrain.data.byte_level_bpe import BYTE_ALPHABET, GPT2_PATTERN, oniguruma
from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.errors import ConfigError

NORMAL, CONTROL, USER_DEFINED, UNUSED = 1, 3, 4, 5  # llama_token_attr
NEVER_MERGED = "\u4e00 \u4e00"  # a merge is required; these characters are not in the alphabet of bytes
_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|"
_OTHERS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3, _QWEN2 = rf"{_LETTERS}\p{{N}}{{1,3}}{_OTHERS}", rf"{_LETTERS}\p{{N}}{_OTHERS}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# The names that llama.cpp has for patterns. Its `llama-bpe` also keeps a piece that is itself a token.
PATTERNS = {_GPT2: "gpt-2", oniguruma(GPT2_PATTERN): "gpt-2", _LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
KEEPS_WHOLE_PIECES = frozenset({"llama-bpe"})


@dataclass(frozen=True)
class GGUFVocabulary:
    """A vocabulary in the terms of llama.cpp.

    Attributes:
        kind: `gpt2` or `rwkv`.
        pre: The name of the pattern that cuts text before BPE; None for `rwkv`.
        tokens: The text of each id of the model.
        types: The type of each id.
        merges: The merges of BPE, in their order; empty for `rwkv`.
        end_of_text: The id that ends a document; None if there is none.
        unknown: The id of what no token fits; None for BPE, whose tokens fit any byte.
    """

    kind: str
    pre: str | None
    tokens: Sequence[str]
    types: Sequence[int]
    merges: Sequence[str]
    end_of_text: int | None
    unknown: int | None = None


def gguf_vocabulary(stored: StoredTokenizer, size: int) -> GGUFVocabulary:
    """Return the vocabulary of a model with `size` ids; ids that the tokenizer does not have are unused.

    Raises:
        ConfigError: llama.cpp can't give the same ids as this tokenizer; the message says why. The tokenizer must not
            have more ids than `size`.
    """
    content = json.loads(stored.tokenizer.to_str())
    if content.get("normalizer") is not None:
        raise _unlike(f"its normalizer ({content['normalizer'].get('type')}) changes text first")
    model = content["model"]
    if model["type"] == "WordLevel":
        if stored.end_of_text is not None:
            raise _unlike("it has an end-of-text token beside its words, for which llama.cpp would take other ids")
        return _of_characters(model["vocab"], size)
    if model["type"] == "BPE":
        return _of_bpe(content, stored, size)
    raise _unlike(f"its model is {model['type']}; llama.cpp needs byte-level BPE, bytes, or characters")


def _of_characters(vocabulary: Mapping[str, int], size: int) -> GGUFVocabulary:
    """Return a vocabulary that takes the longest token at each place: with single characters, each one by itself.

    A character that the run's text did not have, which lmtrain refuses, gets an unused id or that of a space.
    """
    if any(len(token) != 1 for token in vocabulary):
        raise _unlike("its tokens are words")
    tokens, types = _unused(size)
    for token, number in vocabulary.items():
        tokens[number], types[number] = _escaped(token), NORMAL
    unknown = types.index(UNUSED) if UNUSED in types else vocabulary.get(" ", 0)  # without one, llama.cpp crashes
    return GGUFVocabulary("rwkv", None, tokens, types, [], None, unknown)


def _of_bpe(content: Mapping[str, Any], stored: StoredTokenizer, size: int) -> GGUFVocabulary:
    model = content["model"]
    pre = _name_of_pattern(content.get("pre_tokenizer"))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    if model.get("ignore_merges", False) != (pre in KEEPS_WHOLE_PIECES):
        _check_merges_make_all_tokens(model, {added["content"] for added in content.get("added_tokens", [])})
    if stored.end_of_text is None:
        raise _unlike("it has no end-of-text token, for which llama.cpp would take another id")
    if not set(BYTE_ALPHABET.values()) <= set(model["vocab"]):
        raise _unlike("it has no token for some of the bytes")
    tokens, types = _unused(size)
    for token, number in model["vocab"].items():
        tokens[number], types[number] = token, NORMAL
    for added in content.get("added_tokens", []):
        # Special ones are found in text only where they are asked for, the others always.
        kind = CONTROL if added["special"] else USER_DEFINED
        if kind == USER_DEFINED and any(added[option] for option in ("lstrip", "rstrip", "single_word")):
            raise _unlike(f"its token {added['content']!r} depends on the characters beside it")
        tokens[added["id"]], types[added["id"]] = added["content"], kind
    return GGUFVocabulary("gpt2", pre, tokens, types, merges or [NEVER_MERGED], stored.end_of_text)


def _name_of_pattern(pre_tokenizer: Mapping[str, Any] | None) -> str:
    """Return llama.cpp's name for the pattern with which a byte-level tokenizer cuts text."""
    steps = (pre_tokenizer or {}).get("pretokenizers", [pre_tokenizer])
    *before, last = [step or {} for step in steps]
    if last.get("type") != "ByteLevel":
        raise _unlike("its BPE is not byte-level")
    if last.get("add_prefix_space"):
        raise _unlike("it adds a space before a text")
    if not before and last.get("use_regex", True):
        return "gpt-2"
    patterns = [step.get("pattern", {}).get("Regex") for step in before if step.get("type") == "Split"]
    if len(before) == len(patterns) == 1 and not last.get("use_regex", True) and patterns[0] in PATTERNS:
        return PATTERNS[patterns[0]]
    raise _unlike("llama.cpp has no name for the pattern with which it cuts text")


def _check_merges_make_all_tokens(model: Mapping[str, Any], added: Container[str]) -> None:
    """Check that it makes no difference whether a piece that is a token is kept, or made by merges.

    `added` are the added tokens, which merges need not make: a piece between them is none of them.
    """
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"]]
    bpe = models.BPE(vocab=model["vocab"], merges=[(left, right) for left, right in pairs])
    for token, number in model["vocab"].items():
        if token not in added and [made.id for made in bpe.tokenize(token)] != [number]:
            raise _unlike(f"its merges do not make its token {token!r}")


def _unused(size: int) -> tuple[list[str], list[int]]:
    return [f"[unused{number}]" for number in range(size)], [UNUSED] * size


def _escaped(character: str) -> str:
    r"""Return a character as llama.cpp reads tokens of `rwkv`: bytes other than printable ASCII as `\x..`."""
    data = character.encode()
    plain = len(data) == 1 and character.isprintable() and character != "\\"
    return character if plain else "".join(f"\\x{byte:02x}" for byte in data)


def _unlike(reason: str) -> ConfigError:
    return ConfigError(f"--to gguf: llama.cpp can't give the same ids as the run's tokenizer: {reason}")
