"""A `meta.json` that is damaged or of another kind is named."""

import json

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
    ],
)
def test_a_meta_json_of_another_kind_is_named(tmp_path, change, message):
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
