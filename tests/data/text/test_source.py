"""Documents are the text between separators, and their parts join to it, from whatever position they are read."""

import codecs
import hashlib
import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.data.text.document import Document
from lmtrain.data.text.files import TextScan
from lmtrain.data.text.inputs import remarks_on
from lmtrain.data.text.source import FileSource, StandardLibrary, TextFiles

# Few different characters, so that separators and their beginnings are frequent; they have one to four bytes.
TEXTS = st.text(st.sampled_from("ab \n|é狐🦊"), max_size=80)
SEPARATORS = st.sampled_from(["\n", "\n\n", "||", "|a|", "狐", "\n|\n"])


def written(folder: Path, **texts: str | bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.txt").write_bytes(text.encode() if isinstance(text, str) else text)
    return folder


def whole(documents: list[Document]) -> list[tuple[str, str]]:
    """Return the names and texts of documents, after joining and checking their parts."""
    joined: list[tuple[str, str]] = []
    parts: list[Document] = []
    for document in documents:
        parts.append(document)
        assert document.start == sum(len(part.text.encode()) for part in parts[:-1])
        assert document.text
        assert document.name == parts[0].name
        assert document.size == parts[0].size
        if document.last:
            text = "".join(part.text for part in parts)
            assert document.size in (None, len(text.encode()))
            assert document.whole == (len(parts) == 1 and document.size is None)
            joined.append((document.name, text))
            parts = []
    assert not parts
    return joined


def advance(_: int) -> None:
    pass


# Reading


def test_a_file_is_one_unchanged_document(tmp_path: Path) -> None:
    folder = written(tmp_path, b="windows\r\nnew\rlines\n", a="é狐🦊", c="\ufeffa mark at the start\ufeff", empty="")
    source = TextFiles([f"{folder}/*.txt", f"{folder}/a.*"])
    assert [(document.name, document.text) for document in source.read()] == [
        (f"{folder}/a.txt", "é狐🦊"),
        (f"{folder}/b.txt", "windows\r\nnew\rlines\n"),
        (f"{folder}/c.txt", "a mark at the start\ufeff"),
    ]


def test_files_are_found_in_inner_folders_and_by_names_that_look_like_globs(tmp_path: Path) -> None:
    written(tmp_path / "x" / "y", deep="deep")
    (tmp_path / "x" / "data [1].txt").write_text("brackets")
    assert [document.text for document in TextFiles(f"{tmp_path}/**/*.txt").read()] == ["brackets", "deep"]
    assert [document.text for document in TextFiles(f"{tmp_path}/x/data [1].txt").read()] == ["brackets"]


def test_with_a_newline_as_separator_documents_have_line_numbers(tmp_path: Path) -> None:
    folder = written(tmp_path, a="one\n\nthree\n", b="\n\n", c="one")
    found = [(document.name, document.text) for document in TextFiles(f"{folder}/*.txt", "\n").read()]
    assert found == [(f"{folder}/a.txt:1", "one"), (f"{folder}/a.txt:3", "three"), (f"{folder}/c.txt:1", "one")]


@settings(max_examples=200, deadline=None)
@given(TEXTS, st.none() | SEPARATORS, st.integers(8, 40), st.integers(1, 50), st.integers(1, 50), st.booleans())
def test_documents_join_to_the_text_from_every_position(
    tmp_path_factory: pytest.TempPathFactory,
    text: str,
    separator: str | None,
    part_bytes: int,
    read_bytes: int,
    other_read_bytes: int,
    mark: bool,
) -> None:
    folder = tmp_path_factory.mktemp("texts")
    written(folder, a=codecs.BOM_UTF8 * mark + text.encode(), b="the next one|\n")
    source = TextFiles(f"{folder}/*.txt", separator)
    reader = source.read(part_bytes=part_bytes, read_bytes=read_bytes)
    documents, positions = [], [reader.position()]
    for document in reader:
        assert len(document.text.encode()) <= part_bytes
        documents.append(document)
        positions.append(json.loads(json.dumps(reader.position())))
    expected = [
        (f"{folder}/{name}.txt" if separator is None else f"{folder}/{name}.txt:{number}", piece)
        for name, content in (("a", text), ("b", "the next one|\n"))
        for number, piece in enumerate([content] if separator is None else content.split(separator), 1)
        if piece
    ]
    assert whole(documents) == expected
    for done, position in enumerate(positions):
        again = TextFiles(f"{folder}/*.txt", separator).read(
            position, part_bytes=part_bytes, read_bytes=other_read_bytes
        )
        assert again.position() == position
        assert list(again) == documents[done:]


def test_only_long_documents_come_in_parts(tmp_path: Path) -> None:
    folder = written(tmp_path, a="x" * 20 + "|" + "y" * 21 + "|" + "z" * 19)
    parts = list(TextFiles(f"{folder}/*.txt", "|").read(part_bytes=20))
    assert [part.whole for part in parts] == [True, False, False, True]
    assert [part.last for part in parts] == [True, False, True, True]
    assert {part.size for part in parts[1:3]} == {21}


def test_a_long_document_is_cut_where_no_token_crosses(tmp_path: Path) -> None:
    folder = written(tmp_path, a="some words\nof a line\n" * 50)
    parts = [part.text for part in TextFiles(f"{folder}/*.txt").read(part_bytes=100)]
    assert len(parts) > 10
    assert all(part.startswith("\n") and before[-1].isalpha() for before, part in pairwise(parts))


MEMORY = """
import resource, sys
from lmtrain.data.text.source import TextFiles
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
before = peak()
source = TextFiles(sys.argv[1])
text_bytes = source.text_bytes(source.scan(lambda size: None))
assert sum(len(document.text.encode()) for document in source.read()) == text_bytes
reader = TextFiles(sys.argv[1], "<|endoftext|>").read()
assert next(reader).text == "a short one"
assert [next(reader).size for _ in range(3)] == [text_bytes - 24] * 3
print(peak() - before)
"""


@pytest.mark.slow
def test_a_document_of_any_size_needs_little_memory(tmp_path: Path) -> None:
    block = ("Some words, an é and a 🦊, in lines like those of a book, a paragraph each.\n" * 12000).encode()
    with (tmp_path / "large.txt").open("wb") as file:
        file.write(b"a short one<|endoftext|>")
        for _ in range(180_000_000 // len(block)):
            file.write(block)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "large.txt")], capture_output=True, text=True, timeout=120
    )
    assert not done.stderr
    assert int(done.stdout) < 100_000  # KiB; a character of text takes four bytes here


# Scanning


@settings(max_examples=300, deadline=None)
@given(TEXTS, SEPARATORS, st.integers(1, 12), st.booleans())
def test_text_is_counted_correctly_across_chunks(text: str, separator: str, chunk: int, mark: bool) -> None:
    data = codecs.BOM_UTF8 * mark + text.encode()
    content = TextScan("a", separator.encode())
    for start in range(0, max(len(data), 1), max(chunk, 3 if mark else 1)):
        content.add(data[start : start + max(chunk, 3 if mark else 1)])
    content.end()
    assert content.text_bytes == len(text.replace(separator, "").encode())
    assert content.separators == text.count(separator)
    assert content.sha256.hexdigest() == hashlib.sha256(data).hexdigest()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([b"a", b"\xc3\xa9", b"\xe7\x8b\x90", b"\xff", b"\xf0\x9f", b"\xa9"]), max_size=12))
def test_the_position_of_invalid_bytes_is_reported(pieces: list[bytes]) -> None:
    data = b"".join(pieces)
    try:
        data.decode()
        expected = None
    except UnicodeDecodeError as error:
        expected = error.start
    for chunk in (1, 2, 3, 100):
        content = TextScan("a.txt", None)
        try:
            for start in range(0, len(data), chunk):
                content.add(data[start : start + chunk])
            content.end()
        except ValueError as error:
            assert f"a.txt: not UTF-8 text (byte {expected}: " in str(error)  # noqa: PT017
        else:
            assert expected is None


def test_a_scan_records_files_and_counts_their_text(tmp_path: Path) -> None:
    folder = written(tmp_path, a="\ufeffone|two||", b="é")
    source, advanced = TextFiles(f"{folder}/*.txt", "|"), []
    inputs = json.loads(json.dumps(source.scan(advanced.append)))
    assert sum(advanced) == 14
    assert source.text_bytes(inputs) == 8 == sum(len(document.text.encode()) for document in source.read())
    assert list(inputs) == [f"{folder}/a.txt", f"{folder}/b.txt"]
    status = (folder / "a.txt").stat()
    assert inputs[f"{folder}/a.txt"] == {
        "bytes": 12,
        "mtime_ns": status.st_mtime_ns,
        "sha256": hashlib.sha256((folder / "a.txt").read_bytes()).hexdigest(),
        "text_bytes": 6,
    }


PLAIN = b"plain text of some length, " * 100


@pytest.mark.parametrize(
    ("files", "separator", "content", "message"),
    [
        ("nothing*.txt", None, PLAIN, r"prepare.source.files=nothing\*.txt: no such file in /"),
        (".", None, PLAIN, r"no such file in .*; for the files in the folder, write ./\* or ./\*\*/\*.txt"),
        ("a.txt", None, b"ok \xff\xfe not", r"a.txt: not UTF-8 text .byte 3: invalid start byte.; convert it .*latin1"),
        ("a.txt", None, b"x" * 2_000_000 + b"\xe7\x8b", r"byte 2,000,000: it ends in the middle of a character"),
        ("a.txt", None, b"\x1f\x8b\x08 gzip", r"compressed with gzip, which the Hugging Face source reads"),
        ("a.txt", None, b"(\xb5/\xfd zst", r"compressed with zstandard, which the Hugging Face source reads"),
        ("a.txt", None, b"BZh9\xff", r"compressed with bzip2"),
        ("a.txt", None, b"\xfd7zXZ\x00", r"compressed with xz"),
        ("a.txt", None, b"PAR1\xff", r"is a Parquet file, which the Hugging Face source reads"),
        ("a.txt", None, b"PK\x03\x04\xff", r"zip archive: unpack it"),
        ("a.txt", None, "text".encode("utf-16"), r"looks like UTF-16: convert it .iconv"),
        ("a.txt", None, "text".encode("utf-16-le"), r"looks like UTF-16: convert it .iconv"),
        ("a.txt", None, b"\xb7F\x00O\x8e\x10", r"it does not look like text: leave it out"),
        ("*.txt", None, b"", r"prepare.source: no text in a.txt$"),
        ("*.txt", "|", b"|||", r"prepare.source: no text in a.txt$"),
        (
            "a.txt",
            "<|eot|>",
            PLAIN,
            r"separator='<|eot|>': does not occur in a.txt; null makes each file one document$",
        ),
        ("a.txt", r"\n", PLAIN, r"""does not occur in a.txt; .* a newline is "\\n" in YAML, \$'"\\n"' in a shell$"""),
    ],
)
def test_mistakes_are_reported_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    files: str,
    separator: str | None,
    content: bytes,
    message: str,
) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message) as raised:
        TextFiles(files, separator).scan(advance)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("separator", "remark"),
    [
        ("\n\n", r"crlf\.txt: is one document, because its lines end in CRLF; remove the .r .sed"),
        ("\n", r"crlf\.txt: has lines that end in CRLF"),
        ("\r\n\r\n", None),
        ("<|eot|>", None),
    ],
)
def test_crlf_lines_are_reported_if_newlines_separate_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, separator: str, remark: str | None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crlf.txt").write_bytes(b"a\r\n\r\nb\r\n")
    (tmp_path / "plain.txt").write_bytes(b"c\n\nd<|eot|>e\n")
    remarks = remarks_on(TextFiles("*.txt", separator).scan(lambda size: None))
    assert len(remarks) == (remark is not None)
    assert not remark or re.match(remark, remarks[0])


def test_the_suggested_fixes_for_crlf_work_in_a_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "crlf.txt").write_bytes(b"a\r\n\r\nb\r\n")
    with pytest.raises(ValueError, match="the lines end in CRLF: give prepare") as raised:
        TextFiles("crlf.txt", "\n\n").scan(lambda size: None)
    given, converted = re.fullmatch(r".*give (\S+) \(in a shell\), .*\((sed .*)\)", str(raised.value)).groups()
    override = subprocess.run(["bash", "-c", f"printf %s {given}"], capture_output=True, check=True).stdout.decode()
    separator = OverridesParser.create().parse_override(override).value()
    assert [document.text for document in TextFiles("crlf.txt", separator).read()] == ["a", "b\r\n"]
    subprocess.run(["sh", "-c", converted.replace("FILE", "crlf.txt")], check=True)
    assert [document.text for document in TextFiles("crlf.txt", "\n\n").read()] == ["a", "b\n"]


def test_the_separator_may_not_be_empty() -> None:
    with pytest.raises(ValueError, match=r"prepare.source.separator='': is empty; null makes each file one document"):
        TextFiles("*.txt", "")


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="needs a file that root can't read")
def test_a_file_that_cannot_be_read_is_named_for_root() -> None:
    with pytest.raises(ValueError, match=r"^/proc/self/mem: Input/output error$"):
        TextFiles("/proc/self/mem").scan(advance)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("secret")
    (tmp_path / "a.txt").chmod(0)
    with pytest.raises(ValueError, match=r"a.txt: Permission denied$"):
        TextFiles(f"{tmp_path}/a.txt").scan(advance)


# Changes


def test_changes_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written(tmp_path / "books", a="x" * 1200, b="bb", c="cc", d="dd", e="ee")
    inputs = TextFiles("books/*.txt").scan(advance)
    source = TextFiles("books/*.txt")
    assert source.changes(inputs) == []
    written(tmp_path / "books", a="x" * 1400, f="new")
    (tmp_path / "books" / "c.txt").unlink()
    (tmp_path / "books" / "d.txt").write_text("DD")
    os.utime(tmp_path / "books" / "d.txt", ns=(1, 1))
    os.utime(tmp_path / "books" / "e.txt", ns=(1, 1))  # only the time changes
    assert source.changes(inputs) == [
        "books/a.txt: 1,200 → 1,400 bytes",
        "books/c.txt: gone",
        "books/d.txt: contents changed",
        "books/f.txt: new",
    ]
    for path in (tmp_path / "books").iterdir():
        path.unlink()
    assert source.changes(inputs) == [f"books/{name}.txt: gone" for name in "abcde"]


def test_a_file_of_the_same_size_and_time_is_not_read_again(tmp_path: Path) -> None:
    written(tmp_path, a="aaaa")
    source = TextFiles(f"{tmp_path}/a.txt")
    inputs = source.scan(advance)
    (tmp_path / "a.txt").write_text("bbbb")
    time = int(inputs[f"{tmp_path}/a.txt"]["mtime_ns"])
    os.utime(tmp_path / "a.txt", ns=(time, time))
    assert source.changes(inputs) == []


def test_a_change_between_scan_and_read_is_noticed(tmp_path: Path) -> None:
    written(tmp_path, a="one|two|three", b="four")
    source = TextFiles(f"{tmp_path}/*.txt", "|")
    inputs = source.scan(advance)
    written(tmp_path, b="FIVE")
    os.utime(tmp_path / "b.txt", ns=(1, 1))
    reader = source.read()
    assert [next(reader).text for _ in range(3)] == ["one", "two", "three"]
    with pytest.raises(ValueError, match=r"b.txt: has changed since the preparation began; prepare again$"):
        next(reader)
    written(tmp_path, b="four")
    restarted = TextFiles(f"{tmp_path}/*.txt", "|")
    assert restarted.changes(inputs) == []
    written(tmp_path, a="ONE|two|three and more")
    with pytest.raises(ValueError, match=r"a.txt: has changed"):
        list(restarted.read())
    (tmp_path / "a.txt").unlink()
    with pytest.raises(ValueError, match=r"a.txt: was removed since the preparation began"):
        list(restarted.read(reader.position() | {"file": f"{tmp_path}/a.txt"}))


def test_a_change_while_reading_is_noticed(tmp_path: Path) -> None:
    written(tmp_path, a="one|two|three")
    reader = TextFiles(f"{tmp_path}/*.txt", "|").read()
    assert next(reader).text == "one"
    written(tmp_path, a="one|two|three and more")
    with pytest.raises(ValueError, match=r"a.txt: has changed"):
        list(reader)


# The standard library


def test_the_standard_library_is_read_in_order() -> None:
    source: FileSource = StandardLibrary()
    inputs = source.scan(advance)
    reader = source.read()
    documents = [next(reader) for _ in range(100)]
    position = reader.position()
    documents += list(reader)
    names = [document.name for document in documents]
    assert len(names) > 300
    assert {"argparse.py", "json/decoder.py", "asyncio/events.py"} <= set(names)
    assert not [name for name in names if "site-packages" in name or "/test/" in name]
    assert source.text_bytes(inputs) == sum(len(document.text.encode()) for document in documents)
    assert source.text_bytes(inputs) > 5_000_000
    again = StandardLibrary()
    assert again.changes(json.loads(json.dumps(inputs))) == []
    assert list(again.read(position)) == documents[100:]


def test_bytes_that_are_not_text_are_left_out_of_the_standard_library(tmp_path: Path) -> None:
    class Small(StandardLibrary):
        def paths(self) -> dict[str, Path]:
            return {path.name: path for path in sorted(tmp_path.iterdir())}

    written(tmp_path, a=b"caf\xe9 \xe7\x8b\x90", b=b" \n", c=b"\xff")
    source = Small()
    assert source.text_bytes(source.scan(advance)) == 7
    assert [(document.name, document.text) for document in source.read()] == [("a.txt", "caf 狐")]
