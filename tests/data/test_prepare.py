"""Text to token files: what comes out decodes to what went in, and a mistake leaves nothing behind."""

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lmtrain.data import tokenizer as tokenizers
from lmtrain.data.prepare import (
    Recipe,
    by_document,
    existing,
    prepare,
    progress_bar,
    tail_of_each_document,
)
from lmtrain.data.source import Document, StandardLibrary, TextFiles
from lmtrain.data.tokenizer import BPE, Characters, CorpusTokenizer
from lmtrain.data.tokens import open_tokens, read_meta

TEXT = "the quick brown fox — jumps over the lazy dog; 狐狸 🦊\n\tdef f(x): return x\r\n" * 40


def made(path: Path, source: object, tokenizer: CorpusTokenizer, holdout: object) -> Path:
    with progress_bar() as progress:
        Recipe(source, tokenizer, holdout).prepare(path, {"a": 1}, progress)  # type: ignore[arg-type]
    return path


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.txt").write_bytes(f"{number}: {TEXT[number:]}".encode())
    return folder


@pytest.mark.parametrize("tokenizer", [BPE(400), Characters()], ids=["bpe", "characters"])
def test_tokens_decode_to_the_text(tmp_path: Path, corpus: Path, tokenizer: CorpusTokenizer) -> None:
    folder = made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), tokenizer, partial(by_document, val_share=0.3))
    meta = read_meta(folder)
    assert meta is not None
    stored = tokenizers.load(str(folder / meta.tokenizer.file))
    assert meta.tokenizer.sha256 == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert meta.vocab_size == stored.get_vocab_size()
    total = 0
    texts = {path.read_bytes().decode() for path in corpus.iterdir()}
    for split, counted in meta.splits.items():
        tokens = open_tokens(folder, split)
        assert len(tokens) == counted.tokens
        assert tokens.max() == counted.max_id < meta.vocab_size
        assert hashlib.sha256(tokens.tobytes()).hexdigest() == counted.sha256
        if meta.end_of_text is None:
            assert stored.decode(tokens.tolist()) == "".join(_of_split(corpus, split))
        else:
            ends = np.flatnonzero(tokens == meta.end_of_text)
            assert len(ends) == counted.documents
            documents = [stored.decode(part.tolist()) for part in np.split(tokens, ends + 1)[:-1]]
            assert set(documents) <= texts
            assert counted.bytes == sum(len(text.encode()) for text in documents)
        total += counted.documents
    assert total == 40


def _of_split(corpus: Path, split: str) -> list[str]:
    documents = list(TextFiles(f"{corpus}/*.txt"))
    return [document.text for document in documents if next(by_document(document, val_share=0.3))[0] == split]


def test_held_out_documents_do_not_depend_on_their_neighbours() -> None:
    names = [f"file{number}" for number in range(3000)]
    held_out = {name for name in names if next(by_document(Document(name, "x"), val_share=0.1))[0] == "val"}
    assert 240 < len(held_out) < 360
    again = {name for name in reversed(names[::2]) if next(by_document(Document(name, "y"), val_share=0.1))[0] == "val"}
    assert again == held_out & set(names[::2])


def test_the_tail_of_one_file_is_held_out_by_the_character(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("abcde" * 200)
    source = TextFiles(str(tmp_path / "input.txt"))
    folder = made(tmp_path / "out", source, Characters(), partial(tail_of_each_document, val_share=0.1))
    assert open_tokens(folder, "train").tolist() == [0, 1, 2, 3, 4] * 180
    assert open_tokens(folder, "val").tolist() == [0, 1, 2, 3, 4] * 20
    assert (folder / "train.bin").stat().st_size == 2 * 900


def test_tinyshakespeare_has_the_65_characters_that_nanogpt_counts(tmp_path: Path) -> None:
    text = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
    if not text.exists():
        pytest.skip("tinyshakespeare is not here")
    folder = made(tmp_path / "out", TextFiles(str(text)), Characters(), partial(tail_of_each_document, val_share=0.1))
    meta = read_meta(folder)
    assert meta is not None
    assert meta.vocab_size == 65
    assert (meta.splits["train"].tokens, meta.splits["val"].tokens) == (1_003_854, 111_540)


def test_the_standard_library_is_there_and_in_order() -> None:
    documents = list(StandardLibrary())
    names = [document.name for document in documents]
    assert len(names) > 300
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    assert names == [document.name for document in StandardLibrary()]
    assert not [name for name in names if "site-packages" in name or "/test/" in name]
    assert sum(len(document.text) for document in documents) > 5_000_000


@pytest.mark.parametrize(
    ("content", "files", "message"),
    [
        (b"", "nothing*.txt", r"prepare.source.files=.*nothing\*.txt: no such file"),
        (b"ok \xff\xfe not", "*.txt", "not UTF-8 text .byte 3"),
        (b"", "*.txt", "no text in it"),
        (b"a", "*.txt", "the train split got 0 tokens"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path: Path, content: bytes, files: str, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        made(
            tmp_path / "out", TextFiles(str(tmp_path / files)), BPE(300), partial(tail_of_each_document, val_share=0.1)
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_other_settings_are_noticed(tmp_path: Path, corpus: Path) -> None:
    recipe = {"tokenizer": {"vocab_size": 300}, "files": ["x"]}
    built = Recipe(TextFiles(f"{corpus}/*.txt"), BPE(300), partial(tail_of_each_document, val_share=0.1))
    with progress_bar() as progress:
        first, seconds = prepare(tmp_path / "out", recipe, lambda _: built, progress)
        again, no_seconds = prepare(tmp_path / "out", recipe, lambda _: pytest.fail("made again"), progress)
    assert seconds > 0
    assert no_seconds == 0
    assert first == again
    with pytest.raises(ValueError, match=r"prepare.tokenizer.vocab_size: 300 → 301"):
        existing(tmp_path / "out", {**recipe, "tokenizer": {"vocab_size": 301}})


def test_files_of_the_users_own_are_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    with progress_bar() as progress, pytest.raises(ValueError, match=r"has files but no meta.json"):
        prepare(tmp_path / "out", {}, lambda _: pytest.fail("made"), progress)
    assert (tmp_path / "out" / "precious.txt").read_text() == "x"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "format version 9"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"splits": {"train": {"tokens": 1}}}, "not a meta.json of token files"),
        ({"surprise": 1}, "not a meta.json of token files"),
    ],
)
def test_a_meta_that_is_not_ours_is_refused(
    tmp_path: Path, corpus: Path, change: dict[str, object], message: str
) -> None:
    folder = made(
        tmp_path / "out", TextFiles(f"{corpus}/*.txt"), BPE(300), partial(tail_of_each_document, val_share=0.1)
    )
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(ValueError, match=message):
        read_meta(folder)
