"""Held-out text: no text is lost or used twice, and the choice depends only on the document."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmtrain.data.text.document import Document
from lmtrain.data.text.holdout import SplitText, asks_for_test, by_document, by_name, tail_of_each_document
from lmtrain.data.text.source import TextFiles

TEXTS = st.text(st.sampled_from("ab \né狐🦊"), min_size=1, max_size=60)
SHARES = st.floats(0.001, 0.999)


def in_parts(text: str, cuts: Iterable[int]) -> list[Document]:
    """Return the text as a document whose parts begin at these characters."""
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    size = len(text.encode())
    return [Document("name", text[begin:end], len(text[:begin].encode()), size) for begin, end in pairwise(places)]


def held(documents: list[Document], holdout: Callable[[Document], Iterable[SplitText]]) -> dict[str, list[SplitText]]:
    splits: dict[str, list[SplitText]] = {"train": [], "val": [], "test": []}
    for document in documents:
        for item in holdout(document):
            assert item.text
            splits[item.split].append(item)
    return splits


def joined(items: list[SplitText]) -> str:
    return "".join(item.text for item in items)


@given(TEXTS, st.lists(st.integers(0, 60), max_size=6), SHARES)
def test_the_tail_of_a_document_in_parts_is_that_of_the_whole(text: str, cuts: list[int], val_share: float) -> None:
    holdout = partial(tail_of_each_document, val_share=val_share)
    whole = held([Document("name", text)], holdout)
    splits = held(in_parts(text, cuts), holdout)
    assert joined(whole["train"]) + joined(whole["val"]) == text
    train_bytes = len(joined(whole["train"]).encode())
    assert 0 <= train_bytes - int(len(text.encode()) * (1 - val_share)) < 4
    for split, items in splits.items():
        assert joined(items) == joined(whole[split])
        assert [item.ends for item in items] == [False] * (len(items) - 1) + [True] * bool(items)
        assert len(whole[split]) <= 1


@given(st.text("abc\n", min_size=1), SHARES)
def test_an_ascii_document_is_cut_at_the_exact_character(text: str, val_share: float) -> None:
    splits = held([Document("name", text)], partial(tail_of_each_document, val_share=val_share))
    assert joined(splits["train"]) == text[: int(len(text) * (1 - val_share))]


def test_tinyshakespeare_is_cut_where_nanogpt_cuts_it() -> None:
    path = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
    if not path.exists():
        pytest.skip("tinyshakespeare is not here")
    for part_bytes in (10_000, 4 << 20):
        documents = list(TextFiles(str(path)).read(part_bytes=part_bytes))
        splits = held(documents, partial(tail_of_each_document, val_share=0.1))
        assert (len(joined(splits["train"])), len(joined(splits["val"]))) == (1_003_854, 111_540)


def test_documents_are_chosen_only_by_their_text() -> None:
    holdout = partial(by_document, val_share=0.1)
    texts = [f"text {number}" for number in range(3000)]
    chosen = {text for text in texts if next(holdout(Document("here", text))).split == "val"}
    assert 240 < len(chosen) < 360
    elsewhere = {text for text in reversed(texts[::2]) if next(holdout(Document(text, text))).split == "val"}
    assert elsewhere == chosen & set(texts[::2])
    more = {text for text in texts if next(by_document(Document("here", text), val_share=0.2)).split == "val"}
    assert chosen < more


@given(TEXTS, st.lists(st.integers(0, 60), max_size=6), SHARES)
def test_a_document_in_parts_is_kept_together(text: str, cuts: list[int], val_share: float) -> None:
    splits = held(in_parts(text, cuts), partial(by_document, val_share=val_share))
    [items] = [items for items in splits.values() if items]
    assert joined(items) == text
    assert [item.ends for item in items] == [False] * (len(items) - 1) + [True]


@pytest.mark.parametrize(
    ("val", "name", "split"),
    [
        ("*/val/*.txt", "data/val/a.txt", "val"),
        ("*/val/*.txt", "data/val/a.txt:12", "val"),
        ("*/val/*.txt", "data/train/a.txt", "train"),
        ("*/val/*.txt", "data/val/a.txt.orig", "train"),
        ("validation:*", "validation:0", "val"),
        ("validation", "validation:7", "val"),
        ("validation:*", "train:0", "train"),
        (["a.txt", "b.txt"], "b.txt", "val"),
        (["a.txt", "b.txt"], "B.txt", "train"),
        ([], "a.txt", "train"),
    ],
)
def test_documents_are_chosen_by_name(val: str | list[str], name: str, split: str) -> None:
    assert list(by_name(Document(name, "text"), val=val)) == [SplitText(split, "text", True)]
    parts = [next(iter(by_name(part, val=val))) for part in (Document(name, "te", 0, 4), Document(name, "xt", 2, 4))]
    assert parts == [SplitText(split, "te", False), SplitText(split, "xt", True)]


@given(TEXTS, st.lists(st.integers(0, 60), max_size=6), SHARES, SHARES)
def test_a_test_split_is_cut_before_the_validation_text(
    text: str, cuts: list[int], val_share: float, test_share: float
) -> None:
    without = held([Document("name", text)], partial(tail_of_each_document, val_share=val_share))
    holdout = partial(tail_of_each_document, val_share=val_share, test_share=test_share)
    whole = held([Document("name", text)], holdout)
    assert joined(whole["val"]) == joined(without["val"])
    assert "".join(joined(whole[split]) for split in ("train", "test", "val")) == text
    test_bytes = len(joined(whole["test"]).encode())
    assert abs(test_bytes - len(text.encode()) * min(test_share, 1 - val_share)) < 5  # a byte, and a character a cut
    splits = held(in_parts(text, cuts), holdout)
    for split, items in splits.items():
        assert joined(items) == joined(whole[split])
        assert [item.ends for item in items] == [False] * (len(items) - 1) + [True] * bool(items)


def test_a_share_of_documents_is_held_out_for_a_test_and_validation_stays_the_same() -> None:
    documents = [Document("", str(number)) for number in range(20_000)]
    without = held(documents, partial(by_document, val_share=0.1))
    splits = held(documents, partial(by_document, val_share=0.1, test_share=0.2))
    assert splits["val"] == without["val"]
    deviation = (20_000 * 0.2 * 0.8) ** 0.5
    assert abs(len(splits["test"]) - 4_000) < 5 * deviation
    assert asks_for_test(partial(by_document, val_share=0.1, test_share=0.2))
    assert not asks_for_test(partial(by_document, val_share=0.1, test_share=0))
    assert not asks_for_test(lambda document: [SplitText("train", document.text, True)])


def test_names_of_a_test_split() -> None:
    documents = [Document(name, name) for name in ("a/train/1.txt", "a/test/1.txt", "test:3", "validation:1", "both")]
    splits = held(documents, partial(by_name, val=["validation:*", "both"], test=["*/test/*", "test", "both"]))
    assert [item.text for item in splits["test"]] == ["a/test/1.txt", "test:3"]
    assert [item.text for item in splits["val"]] == ["validation:1", "both"]
