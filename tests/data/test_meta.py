"""A `meta.json` that is damaged or has other contents is named."""

import json
import os

import numpy as np
import pytest
from support.numbered_tokens import loader, write


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 2}, "format version 2.*reads 1"),
        ({"dtype": "int8"}, "'int8'.*uint16, uint32"),
        ({"dtype": ["uint16"]}, "meta.json"),
        ({"splits": {"train": {"tokens": 100}}}, "not a meta.json"),
        ({"splits": []}, "not a meta.json"),
        ({"unknown": 1}, "not a meta.json.*unknown"),
        ({"vocab_size": 10**12}, "vocab_size 1,000,000,000,000 is not from 1 to 4,294,967,296"),
        ({"vocab_size": 0}, "vocab_size 0 is not from 1 to"),
        ({"vocab_size": -5}, "-5 is not a whole number from 0"),
        ({"end_of_text": 10**400}, "is not a whole number from 0"),
    ],
)
def test_a_meta_json_with_other_contents_is_named(tmp_path, change, message):
    path = write(tmp_path, "uint16", train=np.arange(100)) / "meta.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"meta\.json: .*{message}|meta\.json:.*{message}"):
        loader(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"7", b"null", b'{"format_version": 1}', b"\xff\xfe\x00"])
def test_a_damaged_meta_json_is_named(tmp_path, content):
    write(tmp_path, "uint16", train=np.arange(100))
    (tmp_path / "meta.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"meta\.json"):
        loader(tmp_path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_meta_json_that_is_not_a_file_is_named(tmp_path, make):
    write(tmp_path, "uint16", train=np.arange(100))
    (tmp_path / "meta.json").unlink()
    make(tmp_path / "meta.json")
    with pytest.raises(ValueError, match=r"meta\.json: .*not a plain file"):
        loader(tmp_path)


@pytest.mark.parametrize("tokens", [0, 99, 10**18, -100])
def test_a_wrong_number_of_tokens_is_named(tmp_path, tokens):
    path = write(tmp_path, "uint16", train=np.arange(100)) / "meta.json"
    fields = json.loads(path.read_text())
    train = fields["splits"]["train"]
    for shards in ([], [{"file": "train.bin", "tokens": 100, "sha256": train["sha256"]}]):
        fields["splits"]["train"] = {**train, "tokens": tokens, "shards": shards}
        path.write_text(json.dumps(fields))
        with pytest.raises(ValueError, match=r"meta\.json"):
            loader(tmp_path)
