"""Bare files of another type than uint16 are recognised, and valid uint16 is never taken for another type."""

import argparse
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.loader import TokenLoader
from lmtrain.data.mixture import Mixture
from lmtrain.data.token_files import TokenFiles
from lmtrain.data.token_type import likely_type
from lmtrain.data.tokenizer import BPE
from lmtrain.errors import DataError

WIDE = {
    "int32": "uint32",
    "uint32": "uint32",
    "int64": "int64",
    "uint64": "int64",
    ">u2": "big-endian uint16",
    ">i4": "big-endian uint32",
    ">i8": "big-endian int64",
    "float32": "float32",
    "float64": "float64",
}


class SourceCode:
    """A corpus for training a tokenizer, from a text that every machine has."""

    @staticmethod
    def text() -> str:
        return Path(argparse.__file__).read_text(encoding="utf-8")

    def train_sample(self, max_bytes: int) -> list[str]:
        return [self.text()]


@cache
def text_ids(kind: str) -> np.ndarray:
    text = SourceCode.text()
    if kind == "bytes":
        return np.frombuffer(text.encode(), np.uint8).astype(np.int64)
    if kind == "characters":
        return np.unique(list(text), return_inverse=True)[1]
    if kind == "words":
        return np.unique(text.split(), return_inverse=True)[1] * 13  # the ids reach 50,000
    tokenizer = BPE(int(kind.removeprefix("bpe")))
    return tokenizer.encoder(tokenizer.fit(SourceCode()))([text])[0].astype(np.int64)


KINDS = ["bytes", "characters", "words", "bpe300", "bpe2000"]


def alternating(count: int = 20_000) -> np.ndarray:
    """Return random ids of a large vocabulary, in which every second id is small."""
    generator = np.random.default_rng(0)
    ids = generator.integers(3, 50_257, count)
    ids[1::2] = generator.choice(3, count // 2, p=[0.8, 0.1, 0.1])
    return ids


@pytest.mark.parametrize("kind", KINDS)
def test_real_text_in_uint16_is_recognised(kind: str) -> None:
    ids = text_ids(kind)
    for count in (50, 500, 5_000, len(ids)):
        assert likely_type(ids[:count].astype("<u2").tobytes()) == "uint16"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", WIDE)
def test_other_types_are_recognised(kind: str, dtype: str) -> None:
    ids = text_ids(kind)
    if (kind, dtype) == ("words", ">u2"):
        ids = ids // 13  # multiples of 13 have equally many values in both bytes
    for count in (500, len(ids)):
        assert likely_type(ids[:count].astype(dtype).tobytes()) == WIDE[dtype]


@pytest.mark.parametrize("kind", ["bytes", "characters"])
def test_uint8_is_recognised(kind: str) -> None:
    ids = text_ids(kind)
    for count in (8_000, len(ids)):
        assert likely_type(ids[:count].astype("u1").tobytes()) == "uint8"


@pytest.mark.parametrize(
    "ids",
    [
        np.zeros(5_000, int),
        np.full(5_000, 257),
        np.arange(5_000) % 2,
        np.arange(5_000) % 7,
        np.arange(60_000),
        np.random.default_rng(0).integers(0, 50_257, 60_000),
        np.random.default_rng(0).integers(0, 65_536, 60_000),
        alternating(),
        np.where(np.arange(5_000) % 2, text_ids("characters")[:5_000], 0),
    ],
    ids=[
        "zeros",
        "one id",
        "two ids",
        "seven ids",
        "counting",
        "GPT-2's ids",
        "all ids",
        "every second id small",
        "every second id zero",
    ],
)
def test_unusual_but_valid_uint16_is_recognised(ids: np.ndarray) -> None:
    assert likely_type(ids.astype("<u2").tobytes()) == "uint16"


@settings(deadline=None, max_examples=30)
@given(
    vocabulary=st.sampled_from([66_000, 100_277, 128_256, 151_936, 200_019]),
    exponent=st.floats(0.0, 1.0),
    seed=st.integers(0, 99),
)
def test_uint32_of_large_vocabularies_is_recognised(vocabulary: int, exponent: float, seed: int) -> None:
    """The frequency of an id is proportional to 1 / rank, or more even."""
    uniform = np.random.default_rng(seed).random(40_000)
    ids = (vocabulary ** (1 - exponent * (1 - uniform)) * uniform ** (1 - exponent)).astype("<u4")
    assert likely_type(np.minimum(ids, vocabulary - 1).tobytes()) == "uint32"


def test_a_file_of_another_type_is_refused_unless_the_type_is_stated(tmp_path: Path) -> None:
    ids = text_ids("bytes")
    for split in ("train", "val"):
        ids.astype("int64").tofile(tmp_path / f"{split}.bin")
    with pytest.raises(DataError, match=r"train\.bin: looks like int64, not uint16.* data\.dtype=int64"):
        TokenFiles(tmp_path, "train")
    files = TokenFiles(tmp_path, "train", "int64")
    assert (files.span(0, len(files)) == ids).all()
    loader = TokenLoader(str(tmp_path), "train", 2, 16, seed=0, order="sequential", vocab_size=256, dtype="int64")
    assert loader.batch(0)[0].flatten().tolist() == ids[:32].tolist()
    mixture = Mixture({"a": str(tmp_path)}, {"a": 1.0}, "train", 2, 16, 0, None, "sequential", 256, dtype="int64")
    assert mixture.batch(0)[0].flatten().tolist() == ids[:32].tolist()


def test_a_stated_type_is_not_checked(tmp_path: Path) -> None:
    text_ids("bytes").astype("int64").tofile(tmp_path / "train.bin")
    assert len(TokenFiles(tmp_path, "train", "uint16")) == 4 * len(text_ids("bytes"))
    assert TokenFiles(tmp_path, "train", "uint32").fingerprint != TokenFiles(tmp_path, "train", "int64").fingerprint


def test_a_negative_id_is_refused(tmp_path: Path) -> None:
    np.array([5, -100, 7] * 100).astype("int32").tofile(tmp_path / "train.bin")
    loader = TokenLoader(str(tmp_path), "train", 2, 16, seed=0, vocab_size=256, dtype="int32")
    with pytest.raises(DataError, match="not below the vocabulary size of 256"):
        loader.batch(0)


def test_for_a_type_that_cannot_be_read_the_message_has_a_working_conversion(tmp_path: Path) -> None:
    path = tmp_path / "train.bin"
    text_ids("bpe2000").astype(">u2").tofile(path)
    with pytest.raises(DataError, match="looks like big-endian uint16") as raised:
        TokenFiles(tmp_path, "train")
    assert f"np.fromfile({path.name!r}, '>u2').astype('<u2').tofile" in str(raised.value)
    np.fromfile(path, ">u2").astype("<u2").tofile(path)
    assert (TokenFiles(tmp_path, "train").span(0, 1_000) == text_ids("bpe2000")[:1_000]).all()


def test_a_file_of_numpy_is_recognised(tmp_path: Path) -> None:
    with (tmp_path / "train.bin").open("wb") as file:
        np.save(file, text_ids("bytes").astype("uint16"))
    with pytest.raises(DataError, match=r"is a file of numpy .* ndarray\.tofile"):
        TokenFiles(tmp_path, "train")


def test_large_files_are_sampled_in_three_places(tmp_path: Path) -> None:
    """The zeros at the start fit every type, but the middle and the end do not."""
    ids = np.concatenate([np.zeros(100_000, int), np.tile(text_ids("characters"), 3)])
    ids.astype("uint32").tofile(tmp_path / "train.bin")
    with pytest.raises(DataError, match="looks like uint32"):
        TokenFiles(tmp_path, "train")
