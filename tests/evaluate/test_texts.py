"""Texts become documents and tokens; what can't be read is named."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.tokenizer_samples import Texts
from tokenizers import Tokenizer, models

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.data.tokenizer import Bytes, tokenizer_of_characters
from lmtrain.errors import DataError
from lmtrain.evaluate.measurement import measure
from lmtrain.evaluate.texts import read_documents, text_stream
from lmtrain.evaluate.token_losses import token_losses
from lmtrain.system import System


class Uniform(torch.nn.Module):
    """Knows nothing: all ids are equally likely."""

    def __init__(self, vocab_size: int) -> None:
        super().__init__()
        self.vocab_size = vocab_size

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor, None]:
        return torch.zeros(*tokens.shape, self.vocab_size), None


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def test_a_file_is_one_document_or_is_cut_at_separators(tmp_path: Path) -> None:
    path = file(tmp_path, "a.txt", "\ufeffone\n\ntwo\n\n\n\nthree")
    assert read_documents(path) == ["one\n\ntwo\n\n\n\nthree"]
    assert read_documents(path, "\n\n") == ["one", "two", "three"]


def test_lines_of_json_are_documents(tmp_path: Path) -> None:
    lines = [{"text": "a\nb", "id": 1}, {"text": ""}, {"text": "狐"}]
    path = file(tmp_path, "a.jsonl", "\n".join(map(json.dumps, lines)) + "\n\n")
    assert read_documents(path) == ["a\nb", "狐"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "has no text"),
        ("a.txt", b"ab\xff", r"not UTF-8 text \(invalid start byte at byte 2\)"),
        ("a.jsonl", '{"text": "a"}\n[1]', 'line 2 is not a JSON object with a key "text"'),
        ("a.jsonl", '{"text": 3}', "the text in line 1 is not a string"),
        ("a.jsonl", "[" * 100_000, "line 1 is not a JSON object"),
    ],
)
def test_what_can_not_be_read_is_named(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_documents(file(tmp_path, name, content))


def test_the_end_of_text_is_before_the_first_document_and_after_each() -> None:
    stream = text_stream("t", ["ab", "é"], Bytes().fit(Texts()))
    assert stream.read(0, stream.length).tolist() == [256, 97, 98, 256, 0xC3, 0xA9, 256]
    assert stream.document_bytes is not None
    np.testing.assert_array_equal(stream.document_bytes, [2, 2])
    assert stream.bytes == 4


@pytest.mark.parametrize(("documents", "sizes"), [(["ab", "ba", "a"], [1, 2, 1]), (["b", "é"], [2])])
def test_without_an_end_of_text_documents_are_told_apart_by_their_places(
    documents: list[str], sizes: list[int]
) -> None:
    tokenizer = tokenizer_of_characters({"a": 0, "b": 1, "é": 2})
    stream = text_stream("t", documents, tokenizer)
    assert stream.read(0, stream.length).tolist() == tokenizer.encode("".join(documents)), "no token is between them"
    assert stream.end_of_text is None
    measured = measure(stream, token_losses(Uniform(3), System("cpu"), stream, block_size=2, stride=1, batch_size=2), 2)
    lengths = [len(documents[0]) - 1, *map(len, documents[1:])]
    assert measured.document_tokens.tolist() == [length for length in lengths if length]
    assert measured.document_bytes is not None
    assert measured.document_bytes.tolist() == sizes, "the first character is not predicted"
    assert measured.bits_per_byte == pytest.approx(measured.tokens * np.log2(3) / sum(sizes))


def test_text_without_a_token_has_no_bytes() -> None:
    bpe = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "<end>": 2}, merges=[]))
    bpe.add_special_tokens(["<end>"])
    stream = text_stream("t", ["ab", "aé"], StoredTokenizer(bpe, 2))
    assert stream.read(0, stream.length).tolist() == [2, 0, 1, 2, 0, 2]
    assert stream.bytes == 3
    assert stream.document_bytes is None, "they are not known for each document"


def test_half_a_character_is_named() -> None:
    with pytest.raises(DataError, match=r"^t\.txt: "):
        text_stream("t.txt", ["a\ud800b"], Bytes().fit(Texts()))


def test_an_unknown_character_is_named() -> None:
    with pytest.raises(DataError, match=r"t\.txt: the tokenizer does not know 'c'"):
        text_stream("t.txt", ["abc"], tokenizer_of_characters({"a": 0, "b": 1}))
