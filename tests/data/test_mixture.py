"""Mixtures: exact proportions at every moment, each source in its own order, and sources that are used up."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.meta import Meta, Split, TokenizerFile, write_meta
from lmtrain.data.mixture import Mixture, whole_shares

SIZES = {"a": 400, "b": 250, "c": 100}  # blocks of 4


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    """Return folders where token n of source k is 10,000 · k + n, so that a token shows its place."""
    root = tmp_path_factory.mktemp("sources")
    for number, (name, blocks) in enumerate(SIZES.items()):
        for split, size in (("train", 4 * blocks + 1), ("val", 41)):
            (root / name).mkdir(exist_ok=True)
            (10_000 * number + np.arange(size)).astype("<u2").tofile(root / name / f"{split}.bin")
    return {name: str(root / name) for name in SIZES}


def mixture(folders: dict[str, str], weights: dict[str, float], split: str = "train", **rest: object) -> Mixture:
    paths = {name: folders[name] for name in weights}
    return Mixture(paths, weights, split, **{"batch_size": 1, "block_size": 4, "seed": 0, **rest})


def first_tokens(loader: Mixture, samples: int) -> np.ndarray:
    return np.array([loader.batch(index)[0][0, 0].item() for index in range(samples)])


@settings(deadline=None, max_examples=20)
@given(weights=st.lists(st.integers(1, 20), min_size=2, max_size=3), start=st.integers(0, 10**12))
def test_proportions_are_exact_in_any_window(folders, weights, start):
    named = {name: weight / 20 for name, weight in zip(SIZES, weights, strict=False)}
    loader = mixture(folders, named, batch_size=500)
    x, y = loader.batch(start // 500)
    assert torch.equal(y, x + 1)
    source = x[:, 0].numpy() // 10_000
    within = 1 if len(weights) == 2 else 2 - 1 / (len(weights) - 1)
    for number, weight in enumerate(weights):
        lead = np.append(0, np.cumsum(source == number)) - np.arange(501) * weight / sum(weights)
        assert lead.max() - lead.min() <= within + 1e-9


def test_weights_are_matched_by_name(folders):
    paths = {name: folders[name] for name in ("a", "b")}
    one, other = (Mixture(paths, weights, "train", 1, 4, 0) for weights in ({"a": 9, "b": 1}, {"b": 1, "a": 9}))
    assert np.mean(first_tokens(other, 1_000) < 10_000) == 0.9
    assert np.array_equal(first_tokens(one, 1_000), first_tokens(other, 1_000))
    assert one.fingerprint == other.fingerprint


def test_each_source_shows_each_of_its_blocks_once_per_epoch(folders):
    tokens = first_tokens(mixture(folders, {"a": 0.5, "b": 0.3, "c": 0.2}), 1_000)
    for number, blocks in enumerate(SIZES.values()):
        own = tokens[tokens // 10_000 == number] % 10_000
        for epoch in range(len(own) // blocks):
            assert sorted(own[epoch * blocks : (epoch + 1) * blocks]) == [*range(0, 4 * blocks, 4)]


@pytest.mark.slow
@settings(deadline=None, max_examples=10)
@given(index=st.integers(0, 300) | st.integers(0, 10**10), limited=st.booleans())
def test_samples_do_not_depend_on_the_micro_batch_size(folders, index, limited):
    weights = {"a": 0.5, "b": 0.3, "c": 0.2}
    rest = {"max_epochs": {"b": 1, "c": 1}} if limited else {}
    whole = mixture(folders, weights, batch_size=12, **rest).batch(index)
    for size in (1, 3, 4):
        part = mixture(folders, weights, batch_size=size, **rest)
        parts = [part.batch(index * (12 // size) + number) for number in range(12 // size)]
        assert torch.equal(torch.cat([x for x, _ in parts]), whole[0])
        assert torch.equal(torch.cat([y for _, y in parts]), whole[1])


def test_a_source_that_is_used_up_drops_out_and_the_others_share_its_place(folders):
    loader = mixture(folders, {"a": 0.5, "b": 0.25, "c": 0.25}, max_epochs={"c": 2, "b": 3})
    source = first_tokens(loader, 4_000) // 10_000
    assert (source == 2).sum() == 200
    assert (source == 1).sum() == 750
    last_c, last_b = (np.flatnonzero(source == number).max() for number in (2, 1))
    assert last_c == pytest.approx(800, abs=4)
    between = source[last_c + 1 : last_b]
    assert np.mean(between == 0) == pytest.approx(2 / 3, abs=0.002)  # 0.5 : 0.25
    assert set(source[last_b + 1 :]) == {0}
    assert loader.epochs(4_000) == {"a": (4_000 - 950) / 400, "b": 3.0, "c": 2.0}


def test_it_is_an_error_when_all_sources_are_used_up(folders):
    loader = mixture(folders, {"b": 1, "c": 1}, max_epochs={"b": 2, "c": 1}, batch_size=100)
    seen = torch.cat([loader.batch(index)[0][:, 0] for index in range(6)])
    assert len(seen) == 2 * 250 + 100
    with pytest.raises(ValueError, match=r"data\.max_epochs: all sources are used up after 600 samples"):
        loader.batch(6)


def test_validation_reads_every_source_whole(folders):
    loader = mixture(folders, {"a": 9, "c": 1}, "val", max_epochs={"c": 1})
    targets = torch.cat([y[y >= 0] for _, y in loader.whole_split()])
    assert targets.tolist() == [*range(1, 41), *range(20_001, 20_041)]
    assert loader.total_tokens == 82


def test_weights_are_shares_in_any_unit(folders):
    assert whole_shares({"a": 0.65, "b": 0.25, "c": 0.1}) == [13, 5, 2]
    assert whole_shares({"a": 3.0, "b": 1e0}) == [3, 1]
    assert whole_shares({"a": 0.1, "b": 0.2, "c": 0.7}) == [1, 2, 7]
    with pytest.raises(ValueError, match=r"data\.weights: a=0\.123456789, b=1\.0 repeat only after"):
        whole_shares({"a": 0.123456789, "b": 1.0})
    one, same = (mixture(folders, weights) for weights in ({"a": 0.3, "b": 0.1}, {"a": 3.0, "b": 1.0}))
    assert np.array_equal(first_tokens(one, 100), first_tokens(same, 100))


def test_the_fingerprint_depends_on_the_sources_but_not_on_their_weights(folders):
    prints = [
        mixture(folders, weights).fingerprint
        for weights in ({"a": 1.0, "b": 1.0}, {"a": 1.0, "b": 2.0}, {"a": 1.0, "c": 1.0}, {"a": 1.0})
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_sources_may_have_different_dtypes(tmp_path, folders):
    (tmp_path / "wide").mkdir()
    described(tmp_path / "wide", np.arange(90_000, 91_000), "t", "uint32")
    loader = mixture(folders | {"w": str(tmp_path / "wide")}, {"a": 1, "w": 1}, batch_size=6)
    x, _ = loader.batch(0)
    assert sorted(x[:, 0] >= 90_000) == [False] * 3 + [True] * 3


def described(folder: Path, tokens: np.ndarray, tokenizer: str, dtype: str = "uint16") -> None:
    tokens.astype({"uint16": "<u2", "uint32": "<u4"}[dtype]).tofile(folder / "train.bin")
    split = Split(len(tokens), int(tokens.max()), 1, 3 * len(tokens), "x")
    write_meta(
        folder, Meta(dtype, 100_000, TokenizerFile("bpe", "tokenizer.json", tokenizer), None, {"train": split}, {})
    )


def replace_bytes(folder: Path, count: int) -> None:
    meta = json.loads((folder / "meta.json").read_text())
    meta["splits"]["train"]["bytes"] = count
    (folder / "meta.json").write_text(json.dumps(meta))


def test_sources_of_different_tokenizers_are_refused(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        described(tmp_path / name, np.arange(100), tokenizer=name)
    paths = {name: str(tmp_path / name) for name in ("one", "two")}
    with pytest.raises(ValueError, match=r"data\.paths\.two: made with another tokenizer than data\.paths\.one"):
        mixture(paths, {"one": 1, "two": 1})


def test_bytes_per_token_is_the_mean_over_all_sources(tmp_path, folders):
    for name, size in (("one", 100), ("two", 300)):
        (tmp_path / name).mkdir()
        described(tmp_path / name, np.arange(size), tokenizer="t")
    paths = {name: str(tmp_path / name) for name in ("one", "two")}
    assert mixture(paths, {"one": 1, "two": 1}).bytes_per_token == 3.0
    assert mixture(paths | folders, {"one": 1, "a": 1}).bytes_per_token is None
    replace_bytes(tmp_path / "two", 6 * 300)
    assert mixture(paths, {"one": 1, "two": 1}).bytes_per_token == (3 * 100 + 6 * 300) / 400
    assert mixture(paths, {"one": 1, "two": 1}).sampled_bytes_per_token == 4.5


@pytest.mark.parametrize(
    ("paths", "weights", "limits", "message"),
    [
        ({"a": "x"}, {"b": 1.0}, {}, r"data\.weights: needs one weight for each name in data\.paths \(a\)"),
        ({}, {}, {}, r"data\.weights: .*none given"),
        ({"a": "x"}, {"a": 1.0}, {"b": 1}, r"data\.max_epochs\.b: no such source; the names are a"),
    ],
)
def test_names_that_do_not_match_are_reported(paths, weights, limits, message):
    with pytest.raises(ValueError, match=message):
        Mixture(paths, weights, "train", 1, 4, 0, limits)
