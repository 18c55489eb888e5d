"""A `tokenizer.json` that would crash a process or fill its memory is refused in one line."""

import base64
import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models

from lmtrain.data.stored_tokenizer import StoredTokenizer, load_tokenizer, read_tokenizer_file
from lmtrain.data.tokenizer_trial import MAX_GROWTH, TokenizerRefusedError, growth, try_tokenizer
from lmtrain.errors import DataError

PLAIN = json.loads(Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a")).to_str())


def bpe(prefix: str, *tokens: str) -> dict[str, Any]:
    vocab = {token: number for number, token in enumerate(tokens)}
    return {"type": "BPE", "continuing_subword_prefix": prefix, "vocab": vocab, "merges": [" ".join(tokens[:2])]}


def replace(times: int) -> list[dict[str, Any]]:
    return [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 50}] * times


HARMFUL = {
    "aborts when it is loaded": {"model": bpe("#", "a", "é", "aé", "a©")},
    "panics when it is loaded": {"model": bpe("##########", "a", "b", "ab")},
    "is damaged": {
        "normalizer": {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(b"\xff" * 4).decode()}
    },
    "panics when it encodes": {"pre_tokenizer": {"type": "FixedLength", "length": 0}},
    "panics when it decodes": {"decoder": {"type": "Strip", "content": "b", "start": 5, "stop": 5}},
    "backtracks without end": {
        "pre_tokenizer": {
            "type": "Split", "pattern": {"Regex": "(a+)+$b"}, "behavior": "Isolated", "invert": False,
        }
    },
    "fills the memory when it encodes": {"normalizer": {"type": "Sequence", "normalizers": replace(6)}},
    "fills the memory when it decodes": {"decoder": {"type": "Sequence", "decoders": replace(6)}},
    "nests deeply": {"x": "DEEP"},
    "has an endless token": {"model": {"type": "WordLevel", "vocab": {"a": 0, "x" * 20_000: 1}, "unk_token": "a"}},
}  # fmt: skip


@pytest.mark.parametrize("name", HARMFUL)
def test_a_harmful_tokenizer_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    text = json.dumps({**PLAIN, **HARMFUL[name]}).replace('"DEEP"', "[" * 100_000)
    (tmp_path / "tokenizer.json").write_text(text)
    with pytest.raises(
        DataError, match=r"tokenizer\.json: not a file that the tokenizers library reads \(.+\)$"
    ) as caught:
        load_tokenizer(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_file_larger_than_any_tokenizer_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(DataError, match="larger than"):
        read_tokenizer_file(tmp_path / "tokenizer.json")


def test_a_later_panic_is_an_error_about_the_text() -> None:
    tokenizer = Tokenizer.from_str(json.dumps({**PLAIN, **HARMFUL["panics when it encodes"]}))
    with pytest.raises(ValueError, match="the tokenizer can't encode the text"):
        StoredTokenizer(tokenizer, None).encode("a")
    tokenizer = Tokenizer.from_str(json.dumps({**PLAIN, **HARMFUL["panics when it decodes"]}))
    with pytest.raises(ValueError, match="the tokenizer can't decode the tokens"):
        StoredTokenizer(tokenizer, None).decode([0, 1])


def test_a_harmless_tokenizer_passes() -> None:
    spaces = {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}
    try_tokenizer(
        json.dumps({**PLAIN, "decoder": {"type": "Sequence", "decoders": [spaces, {"type": "Fuse"}]}}).encode()
    )
    try_tokenizer(json.dumps({**PLAIN, "model": {"type": "WordLevel", "vocab": {}, "unk_token": "none"}}).encode())


def test_tokenizers_are_tried_on_a_system_that_refuses_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import resource\n"
        "def setrlimit(kind, limits): raise ValueError('current limit exceeds maximum limit')\n"
        "resource.setrlimit = setrlimit\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    try_tokenizer(json.dumps({**PLAIN, "model": {"type": "WordLevel", "vocab": {"c": 0}, "unk_token": "c"}}).encode())


def test_a_process_that_cannot_be_started_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    with pytest.raises(TokenizerRefusedError, match=r"can't start a process to try it: .*nowhere"):
        try_tokenizer(b"{}")


def test_growth_multiplies_over_all_parts() -> None:
    assert growth({"type": "Sequence", "decoders": replace(1)}) == 50
    assert growth({"type": "Sequence", "decoders": replace(2)}) == MAX_GROWTH + 1
    assert growth({"type": "Prepend", "prepend": "▁"}) == 2
    assert growth({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": " "}) == 2
    assert growth({"type": "Replace", "pattern": {"String": "aa"}, "content": "aaa"}) == 2
    one_for_one = {"type": "Replace", "pattern": {"String": "’"}, "content": "'"}
    # Such a list may replace quotes, dashes and spaces, for example.
    assert growth({"type": "Sequence", "normalizers": [one_for_one] * 100}) == 1


def test_a_file_that_is_not_a_tokenizer_is_refused_with_the_librarys_message() -> None:
    with pytest.raises(TokenizerRefusedError, match="expected value"):
        try_tokenizer(b"?")
