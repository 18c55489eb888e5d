"""Rows of every format are read unchanged, from any position on, and mistakes in them are reported with their place."""

import bz2
import codecs
import csv
import gzip
import importlib.util
import io
import json
import locale
import lzma
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("datasets", reason="needs the extra lmtrain[data]")

import pyarrow
import pyarrow.parquet
import zstandard
from support.hub_server import Hub

from lmtrain.data.text.document import Document
from lmtrain.data.text.huggingface import HuggingFace
from lmtrain.data.text.inputs import remarks_on

Rows = Iterable[dict[str, Any]]

COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}


def jsonl(rows: Rows) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(rows: Rows, row_group_size: int = 7) -> bytes:
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file, row_group_size=row_group_size)
    return file.getvalue()


def arrow(rows: Rows) -> bytes:
    table = pyarrow.Table.from_pylist(list(rows))
    file = io.BytesIO()
    with pyarrow.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    return file.getvalue()


def comma_separated(rows: Rows) -> bytes:
    file = io.StringIO()
    writer = csv.DictWriter(file, ["number", "text"])
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue().encode()


def lines(rows: Rows) -> bytes:
    return "".join(row["text"].replace("\n", " ") + "\n" for row in rows).encode()


def array(rows: Rows) -> bytes:
    return json.dumps(list(rows), indent=1).encode()


def advance(_: int) -> None:
    pass


def rows_of(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [
        {
            "number": number,
            "text": f"row {number}: é狐🦊\nNA" if number % 9 else ["NA", "12", "", "1e5"][number // 9 % 4],
        }
        for number in range(first, first + count)
    ]


READS_COMPRESSED_TEXT = pytest.mark.skipif(
    codecs.lookup(locale.getpreferredencoding(False)).name != "utf-8", reason="lmtrain refuses it in this locale"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


FORMATS = [
    *[("json", jsonl, f"jsonl{suffix}") for suffix in COMPRESSED],
    ("json", array, "json"),
    ("json", array, "json.gz"),
    ("parquet", parquet, "parquet"),
    ("arrow", arrow, "arrow"),
    ("csv", comma_separated, "csv"),
    ("csv", comma_separated, "csv.zst"),
    ("text", lines, "txt"),
    ("text", lines, "txt.gz"),
]


@pytest.mark.parametrize(
    ("path", "write", "suffix"),
    [
        pytest.param(*each, id=each[2], marks=READS_COMPRESSED_TEXT if each[2].endswith(tuple(COMPRESSED)[1:]) else ())
        for each in FORMATS
    ],
)
def test_rows_are_read_from_any_position_on(
    folder: Path, path: str, write: Callable[[Rows], bytes], suffix: str, capfd: pytest.CaptureFixture[str]
) -> None:
    compress = COMPRESSED.get(Path(suffix).suffix, bytes)
    counts = [70, 1, 130]  # more rows than a batch, and a single row
    for number, count in enumerate(counts):
        content = write(rows_of(count, first=sum(counts[:number])))
        (folder / f"{number} *.{suffix}").write_bytes(compress(content))
    source = HuggingFace(path, files=f"[0-9] *.{suffix}")
    advanced: list[int] = []
    inputs = json.loads(json.dumps(source.scan(advanced.append)))
    expected = [
        Document(f"train:{row['number']}", row["text"].replace("\n", " ") if path == "text" else row["text"])
        for row in rows_of(sum(counts))
        if row["text"]
    ]
    reader = source.read()
    documents, positions = [], [reader.position()]
    for document in reader:
        documents.append(document)
        positions.append(json.loads(json.dumps(reader.position())))
    assert documents == expected
    assert source.text_bytes(inputs) == sum(advanced) == sum(len(document.text.encode()) for document in documents)
    assert [(inputs[name]["rows"], inputs[name]["empty_rows"]) for name in sorted(inputs)] == [
        (70, 2),
        (1, 0),
        (130, 4),
    ]
    again = HuggingFace(path, files=f"[0-9] *.{suffix}")
    assert again.changes(inputs) == []
    edges = {
        0,
        1,
        2,
        63,
        64,
        65,
        68,
        69,
        70,
        71,
        100,
        132,
        133,
        194,
        len(documents),
    }  # around the ends of batches and files
    for done in sorted(edges):
        continued = again.read(positions[done])
        assert continued.position() == positions[done]
        assert list(continued) == documents[done:], done
        assert continued.position() == positions[-1]
    assert capfd.readouterr() == ("", "")


def test_reading_continues_after_every_row(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(jsonl(rows_of(11)))
    (folder / "b.jsonl").write_bytes(jsonl(rows_of(5, first=11)))
    source = HuggingFace("json", files="*.jsonl")
    reader = source.read()
    documents = [(document, reader.position()) for document in reader]
    for done, (_, position) in enumerate(documents, 1):
        assert list(source.read(position)) == [document for document, _ in documents[done:]]


@pytest.mark.parametrize(("path", "write"), [("json", jsonl), ("json", array), ("parquet", parquet)])
def test_a_long_row_comes_in_parts(folder: Path, path: str, write: Callable[[Rows], bytes]) -> None:
    texts = ["short", "some words 狐\n" * 60, "ok", "x" * 200]
    (folder / "a").write_bytes(write({"text": text} for text in texts))
    source = HuggingFace(path, files="a")
    reader = source.read(part_bytes=100)
    found = [(document, reader.position()) for document in reader]
    parts = [document for document, _ in found if document.name == "train:1"]
    assert len(parts) > 5
    assert "".join(part.text for part in parts) == texts[1]
    assert [part.last for part in parts] == [False] * (len(parts) - 1) + [True]
    assert {part.size for part in parts} == {len(texts[1].encode())}
    assert [part.start for part in parts] == [
        len("".join(part.text for part in parts[:number]).encode()) for number in range(len(parts))
    ]
    for done, (_, position) in enumerate(found, 1):
        assert list(source.read(position, part_bytes=100)) == [document for document, _ in found[done:]]


@pytest.mark.parametrize("write", [jsonl, array, parquet])
def test_fields_inside_fields_are_read(folder: Path, write: Callable[[Rows], bytes]) -> None:
    rows = [
        {"a": {"b": {"c": "one"}}, "a.b": "x"},
        {"a": {"b": None}, "a.b": "y"},
        {"a": {"b": {"c": "two"}}, "a.b": ""},
    ]
    (folder / "a").write_bytes(write(rows))
    path = "parquet" if write is parquet else "json"
    assert [document.text for document in HuggingFace(path, files="a", text="a.b.c").read()] == ["one", "two"]
    assert [document.text for document in HuggingFace(path, files="a", text="a.b").read()] == ["x", "y"]
    with pytest.raises(ValueError, match=r"a, (line 1|row 0) has no field 'z' .prepare.source.text., only b; prepare"):
        HuggingFace(path, files="a", text="a.z").scan(advance)


def test_only_the_text_of_a_row_matters(folder: Path) -> None:
    """The library's own reader would refuse these rows (a late field, another type), or quote their texts."""
    rows = [{"text": "first", "meta": None}] * 20000 + [
        {"text": "last", "meta": {"a": [1]}},
        {"meta": 1.5, "text": "x", "new": 1},
    ]
    (folder / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + jsonl(rows) + b'\n  \n{"text": null}\n{"text": "2020-01-01"}')
    source = HuggingFace("json", files="a.jsonl")
    assert [document.name for document in source.read()][-3:] == ["train:20000", "train:20001", "train:20005"]
    assert [document.text for document in source.read()][-4:] == ["first", "last", "x", "2020-01-01"]
    inputs = source.scan(advance)
    assert (inputs["a.jsonl"]["rows"], inputs["a.jsonl"]["empty_rows"]) == (20006, 3)


@READS_COMPRESSED_TEXT
def test_several_compressed_frames_are_one_file(folder: Path) -> None:
    for suffix, compress in COMPRESSED.items():
        (folder / f"a.jsonl{suffix}").write_bytes(compress(jsonl(rows_of(40))) + compress(jsonl(rows_of(40, first=40))))
    for suffix in COMPRESSED:
        inputs = HuggingFace("json", files=f"a.jsonl{suffix}").scan(advance)
        assert inputs[f"a.jsonl{suffix}"]["rows"] == 80


# Splits and folders


def test_files_are_read_by_split(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(jsonl(rows_of(3)))
    (folder / "b.jsonl").write_bytes(jsonl(rows_of(3)))
    files: dict[str, str | list[str]] = {"train": "a.jsonl", "validation": ["b.jsonl", "a.jsonl"]}
    source = HuggingFace("json", splits=["train", "validation"], files=files)
    reader = source.read()
    found = [(document, reader.position()) for document in reader]
    names = [f"train:{row}" for row in (0, 1, 2)] + [f"validation:{row}" for row in (0, 1, 2, 3, 4, 5)]
    assert [document.name for document, _ in found] == names
    for done, (_, position) in enumerate(found, 1):
        assert list(source.read(position)) == [document for document, _ in found[done:]]
    assert [document.name for document in HuggingFace("json", splits="validation", files=files).read()] == names[3:]


@READS_COMPRESSED_TEXT
@pytest.mark.parametrize(("write", "suffix"), [(jsonl, "jsonl.gz"), (parquet, "parquet"), (comma_separated, "csv")])
def test_a_dataset_folder_is_read(folder: Path, write: Callable[[Rows], bytes], suffix: str) -> None:
    (folder / "set" / "data").mkdir(parents=True)
    for name, rows in (("train-0", rows_of(9)), ("train-1", rows_of(9, first=9)), ("validation-0", rows_of(3))):
        content = COMPRESSED.get(Path(suffix).suffix, bytes)(write(rows))
        (folder / "set" / "data" / f"{name}.{suffix}").write_bytes(content)
    source = HuggingFace("set", splits=["train", "validation"])
    inputs = source.scan(advance)
    assert list(inputs) == [f"set/data/{name}.{suffix}" for name in ("train-0", "train-1", "validation-0")]
    documents = list(source.read())
    assert [document.name for document in documents if document.name[0] == "v"] == [
        "validation:0",
        "validation:1",
        "validation:2",
    ]
    assert source.text_bytes(inputs) == sum(len(document.text.encode()) for document in documents)
    again = HuggingFace("set", splits=["train", "validation"])
    assert again.changes(inputs) == []
    (folder / "set" / "data" / f"train-2.{suffix}").write_bytes(b"x")
    assert again.changes(inputs) == [f"set/data/train-2.{suffix}: new"]
    with pytest.raises(ValueError, match=r"prepare.source.splits=test: set has only train, validation$"):
        HuggingFace("set", splits="test").scan(advance)
    picked = HuggingFace("set", files=f"data/*-1.{suffix}")
    assert list(picked.scan(advance)) == [f"set/data/train-1.{suffix}"]


def test_changes_are_noticed(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(jsonl(rows_of(3)))
    (folder / "b.jsonl").write_bytes(jsonl(rows_of(3)))
    source = HuggingFace("json", files="*.jsonl")
    inputs = source.scan(advance)
    (folder / "a.jsonl").write_bytes(jsonl(rows_of(4)))
    assert HuggingFace("json", files="*.jsonl").changes(inputs)[0].startswith("a.jsonl: ")
    with pytest.raises(ValueError, match=r"a.jsonl: has changed since the preparation began"):
        list(source.read())
    (folder / "a.jsonl").unlink()
    assert HuggingFace("json", files="*.jsonl").changes(inputs) == ["a.jsonl: gone"]
    (folder / "b.jsonl").unlink()
    assert HuggingFace("json", files="*.jsonl").changes(inputs) == ["a.jsonl: gone", "b.jsonl: gone"]


# Mistakes

GOOD = jsonl(rows_of(200))


@pytest.mark.parametrize(
    ("path", "name", "content", "message"),
    [
        (
            "json",
            "a",
            GOOD + b'{"txt": "x", "id": 1}\n',
            r"^a, line 201 has no field 'text' .*, only txt, id; prepare",
        ),
        ("json", "a", GOOD + b'{"text": 5}\n', r"^a, line 201 has the type int in text, not text$"),
        ("json", "a", GOOD + b'{"text": ["x"]}\n', r"^a, line 201 has the type list in text, not text$"),
        ("json", "a", GOOD + b'{"text": "x"\n', r"^a, line 201 is not JSON .*; each line must be an object$"),
        ("json", "a", GOOD + b'"x"\n', r"^a, line 201 has the type str, not an object with the field 'text'$"),
        ("json", "a", GOOD + rb'{"text": "a\ud800b"}', r"^a, line 201 has half a character .'.ud800'. in text$"),
        ("json", "a", b'{\n "text": "x"\n}\n', r"^a, line 1 is not JSON .*; each line must be an object$"),
        ("json", "a", array([{"text": "x"}, {"text": None}, {"txt": 1}])[:-5], r"^a: can't be read as json"),
        (
            "json",
            "a",
            array([{"txt": "x"}]),
            r"^a has no field 'text' .prepare.source.text., only txt; prepare",
        ),
        ("json", "a", GOOD + b'{"text": "\xff"}\n', r"^a: can't be read as json .*can't decode byte 0xff"),
        ("json", "a.gz", gzip.compress(GOOD)[:-20], r"^a.gz: can't be read as json .*ended before"),
        ("json", "a.gz", b"\x1f\x8b garbage", r"^a.gz: can't be read as json "),
        ("json", "a.zst", zstandard.compress(GOOD)[:-20], r"^a.zst: ends too early, like an incomplete copy"),
        (
            "json",
            "[a].gz",
            gzip.compress(GOOD),
            r"^.a..gz: can't be read .*; rename it, as the library misreads . . and ::",
        ),
        ("json", "a.xz", lzma.compress(GOOD)[:-20], r"^a.xz: can't be read as json .*ended before"),
        ("json", "a", b'{"text": ""}\n{"text": null}\n', r"^prepare.source.text=text: no text in a$"),
        ("json", "a", b"", r"^prepare.source.text=text: no text in a$"),
        ("parquet", "a", GOOD, r"^a: can't be read as parquet "),
        ("parquet", "a", parquet(rows_of(30))[:-9], r"^a: can't be read as parquet "),
        (
            "parquet",
            "a",
            parquet([{"txt": "x", "id": 1}]),
            r"^a has no field 'text' .*, only txt, id; prepare\.source\.skip_missing=true skips such rows$",
        ),
        ("parquet", "a", parquet([{"text": 1}] * 99), r"^a, row 0 has the type int in text, not text$"),
        ("parquet", "a", parquet([{"text": b"1"}]), r"^a, row 0 has the type bytes in text, not text$"),
        (
            "csv",
            "a",
            b"txt,id\nx,1\n",
            r"^a has no field 'text' .*, only txt, id; prepare\.source\.skip_missing=true skips such rows$",
        ),
        ("csv", "a", b'text,id\n"x,1\n', r"^a: can't be read as csv .*EOF inside string"),
        (
            "arrow",
            "a",
            arrow([{"txt": "x"}]),
            r"^a has no field 'text' .*, only txt; prepare\.source\.skip_missing=true skips such rows$",
        ),
    ],
)
@READS_COMPRESSED_TEXT
def test_mistakes_in_files_are_reported_in_one_line(
    folder: Path, path: str, name: str, content: bytes, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=message) as raised:
        HuggingFace(path, files=name).scan(advance)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"path": "json"}, r"^prepare.source.path=json: needs prepare.source.files"),
        ({"path": "json", "files": "*.gone"}, r"^prepare.source.files=\*.gone: no such file in /"),
        (
            {"path": "json", "files": "a", "name": "en"},
            r"^prepare.source.name=en: files have no configurations; leave it null$",
        ),
        (
            {"path": "json", "files": "a", "revision": "v1"},
            r"^prepare.source.revision=v1: local files have no revisions",
        ),
        (
            {"path": "json", "files": "a", "splits": ["a", "b"]},
            r"^prepare.source.splits=a, b: give files by split, {a: …}$",
        ),
        ({"path": "json", "files": {"a": "a"}}, r"^prepare.source.splits=train: prepare.source.files has a$"),
        ({"path": "jsonl", "files": "a"}, r"^prepare.source.path=jsonl: not a format; did you mean 'json'\?$"),
        (
            {"path": "a"},
            r"^prepare.source.path=a: is a file; set path to its format .json, .* prepare.source.files to the file$",
        ),
        ({"path": "./gone"}, r"^prepare.source.path=./gone: no such folder in /"),
        (
            {"path": "images"},
            r"^prepare.source.path=images: has the format imagefolder, but only json, .* can be read$",
        ),
        ({"path": "empty"}, r"^prepare.source.path=empty: "),
        ({"path": "two"}, r"^prepare.source.path=two: Config name is missing. .*\['de', 'en'\]"),
        ({"path": "two", "name": "fr"}, r"^prepare.source.path=two: BuilderConfig 'fr' not found. .*\['de', 'en'\]"),
    ],
)
def test_mistakes_in_settings_are_reported_in_one_line(
    folder: Path, arguments: dict[str, Any], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (folder / "a").write_bytes(GOOD)
    for name in ("images", "empty", "two"):
        (folder / name).mkdir()
    (folder / "images" / "a.png").write_bytes(b"x")
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("de", "en"))
    (folder / "two" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("de", "en"):
        (folder / "two" / f"{name}.jsonl").write_bytes(GOOD)
    with pytest.raises(ValueError, match=message) as raised:
        HuggingFace(**arguments).scan(advance)
    assert "\n" not in str(raised.value)
    assert capfd.readouterr() == ("", "")


def test_a_configuration_of_a_folder_is_read(folder: Path) -> None:
    (folder / "two").mkdir()
    configs = '- config_name: de\n  data_files: de.csv\n  sep: "\\t"\n- config_name: en\n  data_files: en.csv\n'
    (folder / "two" / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    (folder / "two" / "de.csv").write_text("id\ttext\n1\tHallo, Welt\n")
    (folder / "two" / "en.csv").write_text("id,text\n1,Hello\n")
    assert [document.text for document in HuggingFace("two", "de").read()] == ["Hallo, Welt"]
    assert [document.text for document in HuggingFace("two", "en").read()] == ["Hello"]


def test_a_missing_library_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)  # how Python itself marks a module that can't be imported
    assert importlib.util.find_spec("datasets") is None
    with pytest.raises(
        ValueError, match=r"^prepare.source: needs the datasets package; pip install 'lmtrain\[data\]'$"
    ):
        HuggingFace("json", files="a")


@pytest.mark.slow
def test_a_locale_that_would_change_the_text_is_refused(folder: Path) -> None:
    (folder / "a.txt.gz").write_bytes(gzip.compress("é\n".encode()))
    script = (
        "from lmtrain.data.text.huggingface import HuggingFace; HuggingFace('text', files='a.txt.gz').scan(lambda _: 0)"
    )
    ascii_locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    _, errors = process(script, folder, **ascii_locale).communicate(timeout=60)
    assert re.search(r"a\.txt\.gz: can't be read as text \(.* the locale's encoding, .*; set PYTHONUTF8=1\)", errors)
    output, errors = process(script, folder, **ascii_locale | {"PYTHONUTF8": "1"}).communicate(timeout=60)
    assert (output, errors) == ("", "")


# The hub. Each test needs its own process, because the library reads its settings from the environment only once.


def process(script: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-u", "-c", script],
        env={**os.environ, "HF_HOME": str(folder / "home"), "USE_TORCH": "0", "PYTHONUTF8": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


HUB = """
import json
from lmtrain.data.text.huggingface import HuggingFace

def step(*values):  # prints the values, and waits until the hub has taken its next step
    print(json.dumps(values))
    input()

def error(call):
    try:
        call()
    except (ValueError, OSError) as error:
        return [type(error).__name__, str(error)]

make = lambda **more: HuggingFace("lab/corpus", splits=["train", "validation"], **more)
source = make()
inputs = source.scan(print)
reader = source.read()
texts = [next(reader).text for _ in range(300)]
position = reader.position()
step(inputs, source.text_bytes(inputs), make().changes(inputs), texts, position)
texts += [document.text for document in reader]
restarted = make()
step(make().changes(inputs), texts, [document.text for document in restarted.read(position)])
pinned = make(revision=inputs["lab/corpus"]["commit"])
step(pinned.changes(inputs), [document.text for document in pinned.read()] == texts)
newer = HuggingFace("lab/corpus")
step(newer.scan(print), [document.text for document in newer.read()])
step(error(lambda: HuggingFace("lab/nothing").scan(print)), error(lambda: make(revision="v9").scan(print)),
     error(lambda: HuggingFace("lab/corpus", text="txt").scan(print)))
step(make().changes(inputs), error(lambda: make().scan(print)))
"""


@pytest.mark.slow
def test_a_dataset_of_the_hub_is_read_at_one_commit(folder: Path) -> None:
    hub = Hub("lab/corpus")
    files = {
        "README.md": b"---\nlicense: mit\n---\n",
        "data/train-0.jsonl.gz": gzip.compress(jsonl({"text": f"row {number}"} for number in range(500))),
        "data/train-1.jsonl.gz": gzip.compress(jsonl([{"text": "last"}])),
        "data/validation-0.jsonl.gz": gzip.compress(jsonl([{"text": "held out"}])),
    }
    first = hub.commit(files)
    running = process(HUB, folder, HF_ENDPOINT=hub.url)
    assert running.stdin is not None
    assert running.stdout is not None
    assert running.stderr is not None

    def printed() -> Any:
        assert running.stdout is not None
        line = running.stdout.readline()
        assert line, running.stderr is not None and running.stderr.read()
        return json.loads(line)

    def next_step() -> None:
        assert running.stdin is not None
        running.stdin.write("\n")
        running.stdin.flush()

    inputs, text_bytes, changes, texts, position = printed()
    assert (inputs, text_bytes, changes) == ({"lab/corpus": {"commit": first}}, None, [])
    assert texts == [f"row {number}" for number in range(300)]
    assert (position["file"], position["row"], position["commit"]) == ("data/train-0.jsonl.gz", 300, first)

    second = hub.commit({"data/train-0.parquet": parquet({"text": f"new {number}"} for number in range(5))})
    next_step()
    changes, texts, rest = printed()
    assert changes == [f"lab/corpus: commit {first} → {second}"]
    assert texts == [f"row {number}" for number in range(500)] + ["last", "held out"]
    assert rest == texts[300:]
    next_step()
    assert printed() == [[], True]
    next_step()
    assert printed() == [{"lab/corpus": {"commit": second}}, [f"new {number}" for number in range(5)]]
    next_step()
    nothing, no_revision, no_field = printed()
    assert (nothing[0], no_revision[0], no_field[0]) == ("ValueError", "ValueError", "NoFieldError")
    assert nothing[1].startswith("prepare.source.path=lab/nothing: no such folder here, and the hub says: ")
    assert "404" in no_revision[1]
    assert no_field[1].startswith("data/train-0.parquet has no field 'txt' (prepare.source.text), only text")

    hub.stop()
    next_step()
    changes, no_scan = printed()
    assert changes == []
    assert no_scan[0] != "ValueError"  # the hub may be back later, so the work done so far must be kept
    assert no_scan[1].startswith("prepare.source.path=lab/corpus: no such folder here, and the hub says: ")
    assert "\n" not in no_scan[1]
    next_step()
    assert running.wait(30) == 0
    assert running.stderr.read() == ""
    assert not [path for path in (folder / "home").rglob("*") if path.name.startswith("train-")]


# Rows and files without text


@pytest.mark.parametrize("number_of_the_empty_one", [0, 1, 2])
def test_a_parquet_file_without_rows_is_read(folder: Path, number_of_the_empty_one: int) -> None:
    for number in range(3):
        rows = 0 if number == number_of_the_empty_one else 4
        table = pyarrow.table({"text": pyarrow.array([f"{number}: {row}" for row in range(rows)], pyarrow.string())})
        pyarrow.parquet.write_table(table, folder / f"{number}.parquet")
    source = HuggingFace("parquet", files="*.parquet")
    assert source.text_bytes(source.scan(lambda size: None)) == 2 * 4 * len("0: 0")
    expected = [f"{number}: {row}" for number in range(3) for row in range(4) if number != number_of_the_empty_one]
    assert [document.text for document in source.read()] == expected


def test_a_csv_file_of_no_bytes_is_read(folder: Path) -> None:
    (folder / "a.csv").write_bytes(b"")
    (folder / "b.csv").write_bytes(b"text\nhello\n")
    source = HuggingFace("csv", files="*.csv")
    source.scan(lambda size: None)
    assert [document.text for document in source.read()] == ["hello"]


WITHOUT_TEXT = {
    "json": jsonl([{"text": "a"}, {"txt": "b"}, {"text": None}, {"text": "c"}]),
    "parquet": parquet([{"txt": "a"}, {"txt": "b"}]),
}


@pytest.mark.parametrize(("kind", "where"), [("json", "b, line 2"), ("parquet", "b")])
def test_a_missing_field_is_an_error_that_names_file_row_and_way_out(folder: Path, kind: str, where: str) -> None:
    (folder / "a").write_bytes({"json": jsonl, "parquet": parquet}[kind]([{"text": "first"}]))
    (folder / "b").write_bytes(WITHOUT_TEXT[kind])
    with pytest.raises(ValueError, match=rf"{where} has no field 'text' .* prepare\.source\.skip_missing=true skips"):
        HuggingFace(kind, files=["a", "b"]).scan(lambda size: None)


@pytest.mark.parametrize(("kind", "rest", "missing"), [("json", ["a", "c"], 1), ("parquet", [], 2)])
def test_rows_without_the_field_are_skipped_and_counted(folder: Path, kind: str, rest: list[str], missing: int) -> None:
    (folder / "a").write_bytes({"json": jsonl, "parquet": parquet}[kind]([{"text": "first"}]))
    (folder / "b").write_bytes(WITHOUT_TEXT[kind])
    source = HuggingFace(kind, files=["a", "b"], skip_missing=True)
    inputs = source.scan(lambda size: None)
    assert inputs["b"]["missing_rows"] == missing
    assert inputs["b"]["empty_rows"] == (1 if kind == "json" else 0)
    noun = "row" if missing == 1 else "rows"
    assert remarks_on(inputs) == [f"skipped {missing} {noun} without the field (in b)"]
    documents = list(source.read())
    assert [document.text for document in documents] == ["first", *rest]
    assert documents[-1].name == f"train:{4 if rest else 0}"


OFFLINE = """
from lmtrain.data.text.huggingface import HuggingFace
for document in HuggingFace("json", files="a.jsonl").read():
    print(document.text)
try:
    HuggingFace("allenai/c4", "en").scan(print)
except OSError as error:
    print(error)
"""


@pytest.mark.slow
def test_local_files_need_no_network(folder: Path) -> None:
    (folder / "a.jsonl").write_bytes(jsonl([{"text": "here"}]))
    output, errors = process(OFFLINE, folder, HF_HUB_OFFLINE="1").communicate(timeout=60)
    assert errors == ""
    here, message = output.splitlines()
    assert here == "here"
    assert message.startswith("prepare.source.path=allenai/c4: no such folder here, and the hub says: ")
    assert "offline" in message.lower()
    assert not [path for path in (folder / "home").rglob("*") if path.is_file()]  # local files are not cached
