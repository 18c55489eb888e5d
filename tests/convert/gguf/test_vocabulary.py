"""Tests of tokenizers that llama.cpp can have, and of those it can't."""

import json

import pytest
from support.exported import tokenizer
from support.tokenizer_samples import ENCODINGS, fitted
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from lmtrain.convert.gguf.vocabulary import CONTROL, NEVER_MERGED, PATTERNS, USER_DEFINED, gguf_vocabulary
from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.errors import ConfigError

pytestmark = pytest.mark.usefixtures("tiktoken_plugin")


def changed(kind: str, **parts: object) -> StoredTokenizer:
    stored = tokenizer(kind)
    for name, part in parts.items():
        setattr(stored.tokenizer, name, part)
    return stored


def test_characters_are_escaped_as_bytes() -> None:
    stored = tokenizer("characters")
    found = gguf_vocabulary(stored, stored.vocab_size + 2)
    tokens = {character: found.tokens[number] for character, number in stored.tokenizer.get_vocab().items()}
    assert (tokens["a"], tokens["\n"], tokens["\\"], tokens["é"]) == ("a", "\\x0a", "\\x5c", "\\xc3\\xa9")
    assert found.unknown == stored.vocab_size
    assert found.end_of_text is None
    assert gguf_vocabulary(stored, stored.vocab_size).unknown == stored.tokenizer.token_to_id(" ")


def test_bytes_are_bpe_that_never_merges() -> None:
    found = gguf_vocabulary(tokenizer("bytes"), 257)
    assert found.merges == [NEVER_MERGED]
    assert found.end_of_text == 256


def test_gpt2_of_tiktoken_has_the_pattern_of_gpt2() -> None:
    assert gguf_vocabulary(fitted(ENCODINGS[0])[1], 5000).pre == "gpt-2"


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_is_found_however_it_is_written(pattern: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    content = json.loads(tokenizer("bpe").tokenizer.to_str())
    content["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, byte_level]}
    content["model"]["ignore_merges"] = PATTERNS[pattern] == "llama-bpe"
    stored = StoredTokenizer(Tokenizer.from_str(json.dumps(content)), tokenizer("bpe").end_of_text)
    assert gguf_vocabulary(stored, 600).pre == PATTERNS[pattern]


@pytest.mark.parametrize(
    ("stored", "reason"),
    [
        (changed("bpe", normalizer=normalizers.NFC()), r"its normalizer \(NFC\) changes text first"),
        (changed("bpe", pre_tokenizer=pre_tokenizers.Whitespace()), "its BPE is not byte-level"),
        (changed("bpe", pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)), "it adds a space"),
        (StoredTokenizer(tokenizer("bpe").tokenizer, None), "it has no end-of-text token"),
        (StoredTokenizer(tokenizer("characters").tokenizer, 0), "it has an end-of-text token beside its words"),
    ],
)
def test_a_tokenizer_that_llama_cpp_can_not_have_is_refused(stored: StoredTokenizer, reason: str) -> None:
    with pytest.raises(ConfigError, match=f"can't give the same ids as the run's tokenizer: {reason}"):
        gguf_vocabulary(stored, 1000)


def with_content(kind: str, **model: object) -> StoredTokenizer:
    content = json.loads(tokenizer(kind).tokenizer.to_str())
    content["model"] |= model
    return StoredTokenizer(Tokenizer.from_str(json.dumps(content)), tokenizer(kind).end_of_text)


def test_an_added_token_that_is_not_special_is_found_in_every_text() -> None:
    stored = tokenizer("bpe")
    stored.tokenizer.add_tokens(["<think>"])
    found = gguf_vocabulary(stored, 603)
    assert (found.tokens[600], found.types[600]) == ("<think>", USER_DEFINED)
    assert (found.tokens[stored.end_of_text or 0], found.types[stored.end_of_text or 0]) == ("<|endoftext|>", CONTROL)
    stored.tokenizer.add_tokens([AddedToken("<tool>", lstrip=True)])
    with pytest.raises(ConfigError, match="its token '<tool>' depends on the characters beside it"):
        gguf_vocabulary(stored, 603)


def test_tokens_that_no_merge_makes_are_found_only_where_pieces_are_kept_whole() -> None:
    vocabulary = tokenizer("bpe").tokenizer.get_vocab() | {"xylophone": 600}
    assert gguf_vocabulary(with_content("bpe", vocab=vocabulary, ignore_merges=False), 603).pre == "gpt-2"
    with pytest.raises(ConfigError, match="its merges do not make its token 'xylophone'"):
        gguf_vocabulary(with_content("bpe", vocab=vocabulary, ignore_merges=True), 603)


def test_a_pattern_without_a_name_is_refused() -> None:
    with pytest.raises(ConfigError, match="no name for the pattern"):
        gguf_vocabulary(fitted(ENCODINGS[2])[1], 5000)
