"""Tokens are the same sequence in one file or many, with and without headers."""

import hashlib
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.loader import TokenLoader
from lmtrain.data.meta import DTYPES, Meta, Shard, Split, TokenizerFile, write_meta
from lmtrain.data.token_files import TokenFiles, split_files

HEADERS = {"uint16": (20240520, 1), "uint32": (20240801, 7)}


def write_shard(path: Path, tokens: np.ndarray, dtype: str = "uint16", header: bool = False) -> None:
    """Write a shard like llm.c's data_common.py: 256 int32, of which three have a meaning, then the tokens."""
    head = np.zeros(256 * header, "<i4")
    if header:
        head[:3] = (*HEADERS[dtype], len(tokens))
    path.write_bytes(head.tobytes() + tokens.astype(DTYPES[dtype]).tobytes())


def cut(folder: Path, tokens: np.ndarray, cuts: list[int], name: str = "train_{:06}.bin", **how: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, part in enumerate(np.split(tokens, cuts)):
        write_shard(folder / name.format(number), part, **how)
    return folder


@settings(deadline=None, max_examples=60)
@given(
    cuts=st.lists(st.integers(1, 999), max_size=6, unique=True).map(sorted),
    header=st.booleans(),
    dtype=st.sampled_from(["uint16", "uint32"]),
    length=st.integers(1, 40),
    data=st.data(),
)
def test_shards_are_read_like_one_file(tmp_path_factory, cuts, header, dtype, length, data):
    header = header or dtype == "uint32"  # a file without header and meta.json is uint16
    tokens = np.arange(1_000) + (70_000 if dtype == "uint32" else 0)
    folder = cut(tmp_path_factory.mktemp("shards"), tokens, cuts, dtype=dtype, header=header)
    files = TokenFiles(folder, "train")
    assert len(files) == 1_000
    assert files.dtype.name == dtype
    offsets = np.array(data.draw(st.lists(st.integers(0, 1_000 - length), min_size=1, max_size=9)))
    assert np.array_equal(files.windows(offsets, length), tokens[offsets[:, None] + np.arange(length)])
    start = data.draw(st.integers(0, 999))
    assert np.array_equal(files.span(start, start + 300), tokens[start : start + 300])
    path, number = files.locate_token(start)
    assert (
        TokenFiles(folder, "train").files[split_files(folder, "train", None).index(path)].tokens[number]
        == tokens[start]
    )


@pytest.mark.parametrize("order", ["shuffle", "random", "sequential"])
def test_batches_do_not_depend_on_the_division_into_files(tmp_path, order):
    tokens = np.random.default_rng(0).integers(0, 500, 5_000)
    whole = cut(tmp_path / "whole", tokens, [], name="train.bin")
    shards = cut(tmp_path / "shards", tokens, [7, 1_000, 1_001, 3_333], header=True)
    one, many = (TokenLoader(str(folder), "train", 8, 32, seed=3, order=order) for folder in (whole, shards))
    for index in (0, 1, 50, 10**6):
        assert all(np.array_equal(a, b) for a, b in zip(one.batch(index), many.batch(index), strict=True))
    for (x, y), (v, w) in zip(one.whole_split(), many.whole_split(), strict=True):
        assert np.array_equal(x, v)
        assert np.array_equal(y, w)


def test_shards_are_sorted_by_number_and_other_splits_are_left_out(tmp_path):
    for number, name in enumerate(["fineweb_train_000009", "fineweb_train_000010", "fineweb_train_8"]):
        write_shard(tmp_path / f"{name}.bin", np.full(3, number), header=True)
    write_shard(tmp_path / "fineweb_val_000000.bin", np.full(5, 9), header=True)
    assert TokenFiles(tmp_path, "train").span(0, 9).tolist() == [2, 2, 2, 0, 0, 0, 1, 1, 1]
    assert TokenFiles(tmp_path, "val").span(0, 9).tolist() == [9] * 5


def test_there_may_be_more_shards_than_the_limit_of_open_files(tmp_path):
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, most))
    try:
        files = TokenFiles(cut(tmp_path, np.arange(1_000), [*range(4, 1_000, 4)]), "train")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    assert len(files.files) == 250
    assert files.span(0, 1_000).tolist() == [*range(1_000)]


def test_shards_must_agree_with_meta_json(tmp_path):
    tokens = np.arange(1_000)
    cut(tmp_path, tokens, [400])
    shards = tuple(
        Shard(path.name, path.stat().st_size // 2, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(tmp_path.glob("*.bin"))
    )
    split = Split(1_000, 999, 1, 4_000, "of both", shards)
    write_meta(tmp_path, Meta("uint16", 1_000, TokenizerFile("none", "", ""), None, {"train": split}, recipe={}))
    files = TokenFiles(tmp_path, "train")
    assert files.fingerprint == "of both"
    assert files.span(0, 1_000).tolist() == tokens.tolist()
    write_shard(tmp_path / shards[1].file, np.arange(599))
    with pytest.raises(ValueError, match=r"train_000001\.bin: has 599 tokens, but meta\.json says 600"):
        TokenFiles(tmp_path, "train")
    (tmp_path / shards[1].file).unlink()
    with pytest.raises(ValueError, match=r"train_000001\.bin: no such file"):
        TokenFiles(tmp_path, "train")


def test_the_fingerprint_of_bare_shards_covers_all_of_them(tmp_path):
    cut(tmp_path, np.arange(100), [50])
    before = TokenFiles(tmp_path, "train").fingerprint
    assert TokenFiles(tmp_path, "train").fingerprint == before
    write_shard(tmp_path / "train_000001.bin", np.arange(1, 51))
    assert TokenFiles(tmp_path, "train").fingerprint != before


def test_a_gap_between_shards_and_shards_of_two_names_are_refused(tmp_path):
    for number in (1, 2, 4, 6):
        write_shard(tmp_path / f"web_train_{number:06}.bin", np.arange(10))
    with pytest.raises(ValueError, match=r"the shards of train go up to number 6, but without 3, 5"):
        TokenFiles(tmp_path, "train")
    write_shard(tmp_path / "code_train_000001.bin", np.arange(10))
    with pytest.raises(ValueError, match=r"several names for train \(code_train, web_train\)"):
        TokenFiles(tmp_path, "train")


def test_a_header_of_another_version_is_refused(tmp_path):
    write_shard(tmp_path / "train.bin", np.arange(300), header=True)
    content = bytearray((tmp_path / "train.bin").read_bytes())
    content[4] = 2
    (tmp_path / "train.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"has version 2 of llm\.c's header"):
        TokenFiles(tmp_path, "train")


@pytest.mark.parametrize("missing", [1, 3])
def test_a_header_that_does_not_match_its_file_is_named(tmp_path, missing):
    write_shard(tmp_path / "train.bin", np.arange(300), header=True)
    path = tmp_path / "train.bin"
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(ValueError, match=rf"train\.bin: its header says 300 tokens, but {600 - missing} bytes follow"):
        TokenFiles(tmp_path, "train")


def test_shards_of_different_types_are_refused(tmp_path):
    write_shard(tmp_path / "train_0.bin", np.arange(300), header=True)
    write_shard(tmp_path / "train_1.bin", np.arange(300), "uint32", header=True)
    with pytest.raises(ValueError, match=r"shards of train have different types \(uint16, uint32\)"):
        TokenFiles(tmp_path, "train")


def test_a_header_without_tokens_is_refused(tmp_path):
    write_shard(tmp_path / "train.bin", np.arange(0), header=True)
    with pytest.raises(ValueError, match=r"train\.bin: 0 bytes"):
        TokenFiles(tmp_path, "train")
