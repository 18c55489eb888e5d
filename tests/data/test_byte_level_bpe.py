"""The two forms of byte-level BPE give the same ids with either library."""

import sys

import pytest
from hypothesis import given, settings
from support.tokenizer_samples import CODE, ENCODINGS, SAMPLES, TEXTS, fitted

from lmtrain.data import byte_level_bpe

pytestmark = pytest.mark.usefixtures("tiktoken_plugin")


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODINGS)
@given(text=TEXTS)
@settings(max_examples=400, deadline=None)
def test_a_converted_encoding_gives_the_ids_of_tiktoken(name: str, text: str) -> None:
    import tiktoken

    _, stored = fitted(name)
    assert stored.encode(text) == tiktoken.get_encoding(name).encode_ordinary(text)


@pytest.mark.parametrize("name", ENCODINGS)
def test_a_converted_encoding_has_the_tokens_of_tiktoken(name: str) -> None:
    import tiktoken

    encoding = tiktoken.get_encoding(name)
    tokenizer, stored = fitted(name)
    assert stored.end_of_text == encoding.eot_token
    assert stored.vocab_size == encoding.n_vocab == stored.tokenizer.token_to_id("<|endofprompt|>") + 1
    for text in [*SAMPLES, CODE[-300_000:]]:
        expected = encoding.encode_ordinary(text)
        assert stored.encode(text) == expected
        assert tokenizer.encoder(stored)([text])[0].tolist() == expected
    for token, rank in encoding._mergeable_ranks.items():  # encoding uses most of them only in merges
        assert stored.tokenizer.id_to_token(rank) == "".join(byte_level_bpe.BYTE_ALPHABET[byte] for byte in token)


@pytest.mark.parametrize("name", ENCODINGS)
def test_every_character_is_split_as_in_tiktoken(name: str) -> None:
    import tiktoken

    encoding, (_, stored) = tiktoken.get_encoding(name), fitted(name)
    # Left out: ideographs, Hangul, code points that are not characters, and old scripts.
    alike = [range(0x3400, 0xA000), range(0xAC00, 0xD7A4), range(0xD800, 0xF900), range(0x12000, 0x1D000)]
    characters = [chr(code) for code in range(0x20000) if not any(code in codes for codes in alike)]
    for before, after in (("a", "b"), ("'", " ")):
        text = "".join(before + character + after for character in characters)
        assert stored.encode(text) == encoding.encode_ordinary(text)


@pytest.mark.parametrize("parallelism", ["true", "false"])
@pytest.mark.parametrize("package", ["tiktoken", None])
def test_bpe_gives_the_same_ids_with_and_without_tiktoken(
    package: str | None, parallelism: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallelism)
    monkeypatch.setattr(byte_level_bpe.os, "sched_getaffinity", lambda _: {0, 1, 2})
    if package is None:
        monkeypatch.setitem(sys.modules, "tiktoken", None)
    tokenizer, stored = fitted("bpe")
    texts = [*SAMPLES, *CODE[-200_000:].splitlines(keepends=True)]
    encoded = tokenizer.encoder(stored)(texts)
    assert [ids.tolist() for ids in encoded] == [encoding.ids for encoding in stored.tokenizer.encode_batch(texts)]
    assert tokenizer.encoder(stored)([]) == []


def test_text_that_tiktoken_refuses_is_still_encoded() -> None:
    spaces = " " * 1_050_000 + "x"
    tokenizer, stored = fitted("bpe")
    [ids] = tokenizer.encoder(stored)([spaces])
    assert stored.decode(ids.tolist()) == spaces
