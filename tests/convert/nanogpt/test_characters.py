"""The characters in nanoGPT's `meta.pkl` are read as data; code in its pickle is never run."""

import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from support.nanogpt_model import Harmful

from lmtrain.convert.nanogpt import characters as nanogpt_characters
from lmtrain.convert.nanogpt.characters import read_characters, read_plain_pickle

TEXT = "First Citizen:\nHör mich, 狐 🦊!"
CHARACTERS = sorted(set(TEXT))
STOI = {character: number for number, character in enumerate(CHARACTERS)}
META = {"vocab_size": len(STOI), "itos": dict(enumerate(CHARACTERS)), "stoi": STOI}  # as nanoGPT's prepare.py writes it


def write(path: Path, content: Any, protocol: int = pickle.DEFAULT_PROTOCOL) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else pickle.dumps(content, protocol))
    return path


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_pickle_protocol_gives_the_ids_of_nanogpt(protocol: int, tmp_path: Path) -> None:
    stored = read_characters(write(tmp_path / "meta.pkl", META, protocol))
    assert stored.encode(TEXT) == [STOI[character] for character in TEXT]
    assert stored.decode(stored.encode(TEXT)) == TEXT
    assert (stored.vocab_size, stored.end_of_text) == (len(STOI), None)
    with pytest.raises(ValueError, match="does not know 'Z'"):
        stored.encode("Z")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_containers_are_read_as_pickle_reads_them(protocol: int) -> None:
    shared = ["a", 1, 70_000, -5]
    content = {"one": shared, "two": shared, "large": {number: str(number) for number in range(3000)}, "none": {}}
    assert read_plain_pickle(pickle.dumps(content, protocol)) == content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({**META, "trap": Path("x")}, r"contains more than dicts, lists, text and integers \("),
        ({"stoi": {"a": 2**40}}, "an integer of 41 bits"),
        ({"vocab_size": 3}, "has no ids of characters"),
        (["a", "b"], "has no ids of characters"),
        ({"stoi": {"ab": 0}}, "stoi has 'ab', which is not a character"),
        ({"stoi": {0: "a"}}, "stoi has 0, which is not a character"),
        ({"stoi": {"a": "b"}}, "stoi gives 'a' a str, which is not an id"),
        ({"stoi": {"a": -1}}, "stoi gives 'a' -1, which is not an id"),
        ({"stoi": {"a": 1, "b": 1}}, "stoi gives two characters the same id"),
        (b"", "pickle"),
        (b"not a pickle", "at position 0, opcode b'n' unknown"),
        (pickle.dumps(META)[:-9], "not a complete pickle|pickle exhausted|not a pickle"),
        (b"\x80\x04].", "has no ids of characters"),
        (b"\x80\x04u.", "not a pickle"),  # SETITEMS of nothing
        (b"\x80\x04h\x07.", "not a pickle"),  # the memo is empty
        (b"\x80\x04}]K\x01s.", "not a pickle"),  # a list as a key
        (b"\x80\x04\x8d" + (2**62).to_bytes(8, "little") + b"x.", "expected"),  # a text that claims 2^62 bytes
    ],
)
def test_other_files_than_a_meta_pkl_are_refused(content: Any, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "meta.pkl", content)
    with pytest.raises(ValueError, match=message) as caught:
        read_characters(path)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_in_the_file_is_never_run(protocol: int, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    path = write(tmp_path / "meta.pkl", {**META, "trap": Harmful(trap)}, protocol)
    with pytest.raises(ValueError, match="contains more than"):
        read_characters(path)
    assert not trap.exists()
    pickle.loads(path.read_bytes())
    assert trap.exists()  # shows that the code would have run


def test_nested_references_take_no_memory(tmp_path: Path) -> None:
    """Each of 200 lists contains the list before it twice, which makes 2^200 elements in all."""
    lists = b"]q\x00" + b"".join(
        b"](h" + bytes([number]) + b"h" + bytes([number]) + b"eq" + bytes([number + 1]) for number in range(200)
    )
    bomb = b"\x80\x04}\x8c\x04stoi}\x8c\x01a(" + lists + b"lss."
    assert pickle.loads(bomb)["stoi"]["a"][2] == [[[], []]] * 2
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="stoi gives 'a' a list"):
            read_characters(write(tmp_path / "meta.pkl", bomb))
        assert tracemalloc.get_traced_memory()[1] < 2 * nanogpt_characters.MAX_BYTES
    finally:
        tracemalloc.stop()


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nanogpt_characters, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match="larger than 100 bytes"):
        read_characters(write(tmp_path / "meta.pkl", META))
