"""Preparing token files: the tokens decode to the text, after any number of kills and with any number of processes."""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import namedtuple
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lmtrain.data import prepare as module
from lmtrain.data.meta import Meta, read_meta
from lmtrain.data.prepare import Recipe, prepare
from lmtrain.data.progress import DataProgress
from lmtrain.data.stored_tokenizer import load_tokenizer
from lmtrain.data.text.holdout import by_document, by_name, tail_of_each_document
from lmtrain.data.text.inputs import changed_inputs
from lmtrain.data.text.source import Source, TextFiles
from lmtrain.data.token_files import TokenFiles
from lmtrain.data.tokenizer import BPE, Bytes, Characters, CorpusTokenizer

TEXT = "the quick brown fox — jumps over the lazy dog; 狐狸 🦊\n\tdef f(x): return x\r\n" * 40
DOCUMENTS = partial(by_document, val_share=0.3)
TAIL = partial(tail_of_each_document, val_share=0.1)


def made(path: Path, source: Source, tokenizer: CorpusTokenizer, holdout: object = DOCUMENTS, workers: int = 1) -> Path:
    with DataProgress() as progress:
        Recipe(source, tokenizer, holdout, workers).prepare(path, {"a": 1}, progress)  # type: ignore[arg-type]
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tokens_of(folder: Path, split: str) -> np.ndarray:
    files = TokenFiles(folder, split)
    return files.span(0, len(files))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}.txt").write_bytes(f"{number}: {TEXT[number:]}".encode())
    return folder


# The files


@pytest.mark.parametrize("tokenizer", [BPE(400), Bytes(), Characters()], ids=lambda tokenizer: tokenizer.kind)
def test_tokens_decode_to_the_text(tmp_path: Path, corpus: Path, tokenizer: CorpusTokenizer) -> None:
    folder = made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), tokenizer)
    meta = read_meta(folder)
    assert meta is not None
    stored = load_tokenizer(folder)
    assert meta.tokenizer.sha256 == hashlib.sha256((folder / "tokenizer.json").read_bytes()).hexdigest()
    assert (meta.vocab_size, meta.end_of_text) == (stored.vocab_size, stored.end_of_text)
    texts = {path.read_bytes().decode() for path in corpus.iterdir()}
    total = 0
    for split, counted in meta.splits.items():
        tokens = tokens_of(folder, split)
        assert len(tokens) == counted.tokens
        assert tokens.max() == counted.max_id < meta.vocab_size
        assert hashlib.sha256(tokens.tobytes()).hexdigest() == counted.sha256
        if meta.end_of_text is None:
            held = [item.text for document in TextFiles(f"{corpus}/*.txt").read() for item in DOCUMENTS(document)
                    if item.split == split]  # fmt: skip
            assert stored.decode(tokens.tolist()) == "".join(held)
        else:
            ends = np.flatnonzero(tokens == meta.end_of_text)
            documents = [stored.decode(part[:-1].tolist()) for part in np.split(tokens, ends + 1)[:-1]]
            assert len(documents) == counted.documents
            assert set(documents) <= texts
            assert counted.bytes == sum(len(text.encode()) for text in documents)
        total += counted.documents
    assert total == 40
    assert sorted(contents(folder)) == [
        "inputs.json", "meta.json", "tokenizer.json", "tokenizer_config.json", "train.bin", "val.bin"
    ]  # fmt: skip


def test_the_tail_of_one_file_is_held_out_at_the_exact_character(tmp_path: Path) -> None:
    (tmp_path / "input.txt").write_text("abcde" * 200)
    folder = made(tmp_path / "out", TextFiles(str(tmp_path / "input.txt")), Characters(), TAIL)
    assert tokens_of(folder, "train").tolist() == [0, 1, 2, 3, 4] * 180
    assert tokens_of(folder, "val").tolist() == [0, 1, 2, 3, 4] * 20
    assert (folder / "train.bin").stat().st_size == 2 * 900


def test_tinyshakespeare_has_the_65_characters_that_nanogpt_counts(tmp_path: Path) -> None:
    text = Path(__file__).parents[3] / "shared" / "data" / "tinyshakespeare" / "input.txt"
    if not text.exists():
        pytest.skip("tinyshakespeare is not here")
    meta = read_meta(made(tmp_path / "out", TextFiles(str(text)), Characters(), TAIL))
    assert meta is not None
    assert meta.vocab_size == 65
    assert (meta.splits["train"].tokens, meta.splits["val"].tokens) == (1_003_854, 111_540)


def test_files_can_be_held_out_by_name(tmp_path: Path, corpus: Path) -> None:
    folder = made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), Bytes(), partial(by_name, val="*/3?.txt"))
    meta = read_meta(folder)
    assert meta is not None
    assert (meta.splits["train"].documents, meta.splits["val"].documents) == (30, 10)


def test_a_test_split_is_made_only_if_it_is_asked_for(tmp_path: Path, corpus: Path) -> None:
    source = TextFiles(f"{corpus}/*.txt")
    without = made(tmp_path / "without", source, Bytes(), partial(tail_of_each_document, val_share=0.1))
    folder = made(tmp_path / "with", source, Bytes(), partial(tail_of_each_document, val_share=0.1, test_share=0.2))
    assert sorted(contents(without)) == sorted({*contents(folder)} - {"test.bin"})
    assert contents(folder)["val.bin"] == contents(without)["val.bin"]
    meta = read_meta(folder)
    assert meta is not None
    split = meta.splits["test"]
    assert split.documents == 40
    assert split.tokens == len(tokens_of(folder, "test")) == split.bytes + 40  # and an end-of-text id for each
    with pytest.raises(ValueError, match=r"prepare.holdout: the test split has only 0 tokens; .*holdout.test_share"):
        made(tmp_path / "empty", source, Bytes(), partial(by_document, val_share=0.5, test_share=1e-9))


def test_something_is_left_to_train_on(tmp_path: Path, corpus: Path) -> None:
    source = TextFiles(f"{corpus}/*.txt")
    with pytest.raises(ValueError, match="only 0 tokens are left for the train split; hold out less"):
        made(tmp_path / "out", source, Bytes(), partial(by_document, val_share=0.5, test_share=0.9))


def test_after_an_error_of_the_recipe_another_one_starts_over(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COMMIT_SECONDS", -1.0)  # something is committed before the error
    source = TextFiles(f"{corpus}/*.txt")
    for share in (1e-9, 0.3):
        recipe = Recipe(source, Bytes(), partial(by_document, val_share=0.5, test_share=share), 1)
        with DataProgress() as progress:
            if share < 0.1:
                with pytest.raises(ValueError, match="the test split has only 0 tokens"):
                    recipe.prepare(tmp_path / "out", {"share": share}, progress)
                assert list(tmp_path.glob(".partial*")) == []
            else:
                recipe.prepare(tmp_path / "out", {"share": share}, progress)
    assert contents(tmp_path / "out")["test.bin"]


def test_the_result_does_not_depend_on_the_number_of_processes(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BATCH_BYTES", 10_000)  # so that there are batches for all processes
    results = [
        contents(made(tmp_path / str(workers), TextFiles(f"{corpus}/*.txt"), BPE(400), workers=workers))
        for workers in (1, 2, 3)
    ]
    assert results[0] == results[1] == results[2]


# Killed and continued

SCRIPT = """
import sys
from functools import partial
from pathlib import Path
from lmtrain.data import prepare as module
from lmtrain.data.text.holdout import by_document
from lmtrain.data.progress import DataProgress
from lmtrain.data.text.source import TextFiles
from lmtrain.data.tokenizer import BPE

module.COMMIT_SECONDS = 0.05
module.BATCH_BYTES = 20_000
if __name__ == "__main__":
    text, out, workers = sys.argv[1:]
    recipe = module.Recipe(TextFiles(text, "<|end|>"), BPE(600), partial(by_document, val_share=0.1), int(workers))
    with DataProgress() as progress:
        recipe.prepare(Path(out), {"workers": "none of the settings"}, progress)
"""


@pytest.fixture
def long_text(tmp_path: Path) -> Path:
    """Write a text for about four seconds of work; its words come from a fixed seed, and its documents all differ."""
    words = random.Random(0)
    vocabulary = ["".join(words.choices("abcdefghij", k=words.randint(2, 9))) for _ in range(20_000)]
    documents = (" ".join(words.choices(vocabulary, k=2_000)) + "\n" for _ in range(400))
    (tmp_path / "long.txt").write_text("<|end|>".join(documents))
    return tmp_path / "long.txt"


@pytest.fixture
def start(tmp_path: Path, long_text: Path) -> Callable[..., subprocess.Popen[str]]:
    (tmp_path / "run.py").write_text(SCRIPT)

    def start(out: Path, workers: int = 1, **options: object) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "run.py"), str(long_text), str(out), str(workers)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)  # type: ignore[call-overload,no-any-return]

    return start


def journal(out: Path) -> dict[str, object]:
    try:
        content: dict[str, object] = json.loads((out.parent / f".partial-{out.name}" / "journal.json").read_text())
    except OSError:
        return {}
    return content


@pytest.mark.slow
def test_a_preparation_killed_several_times_makes_the_same_bytes(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    assert start(tmp_path / "never").wait(60) == 0
    expected = contents(tmp_path / "never")
    out = tmp_path / "killed"
    moments = random.Random(1)
    kills, continued = 0, 0
    while not out.exists():
        before = journal(out).get("splits")
        process = start(out, workers=1 + kills % 2)
        deadline = time.monotonic() + 60
        # Kill it only after it has made progress, so that it finishes at some point.
        while process.poll() is None and time.monotonic() < deadline:
            if journal(out).get("splits") != before and kills < 4:
                time.sleep(moments.uniform(0, 0.2))
                process.kill()
            time.sleep(0.01)
        kills += process.wait() == -signal.SIGKILL
        assert process.stdout is not None
        continued += "continuing where an earlier process stopped, after" in process.stdout.read()
        assert not out.exists() or process.returncode == 0
        assert not (out.parent / f".partial-{out.name}" / "train.bin").exists() or out.exists()
    assert kills >= 3
    assert continued >= 2
    assert contents(out) == expected


@pytest.mark.slow
def test_after_a_full_disk_the_next_call_continues(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    assert start(tmp_path / "whole").wait(60) == 0
    out = tmp_path / "out"
    half = (tmp_path / "whole" / "train.bin").stat().st_size // 2
    full = start(out, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (half, half)))
    assert full.stdout is not None
    assert "File too large" in full.stdout.read()
    assert not out.exists()
    assert journal(out)["splits"]
    process = start(out)
    assert process.stdout is not None
    assert "continuing where an earlier process stopped" in process.stdout.read()
    assert contents(out) == contents(tmp_path / "whole")


@pytest.mark.slow
def test_two_processes_at_once_make_one_folder(tmp_path: Path, start: Callable[..., subprocess.Popen[str]]) -> None:
    processes = [start(tmp_path / "out") for _ in range(2)]
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert sum("another process is preparing this; waiting" in output for output in outputs) == 1
    assert (tmp_path / "out" / "meta.json").exists()
    assert not (tmp_path / ".partial-out").exists()


@pytest.mark.slow
def test_a_killed_worker_is_reported_and_no_worker_outlives_its_parent(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start(tmp_path / "out", workers=2)
    while not journal(tmp_path / "out").get("splits"):
        assert process.poll() is None
        time.sleep(0.01)
    workers = children(process.pid)
    os.kill(workers[-1], signal.SIGKILL)
    output, _ = process.communicate(timeout=300)
    assert "a process that encodes text was killed, perhaps because there was too little memory" in output
    assert "OSError" in output
    process = start(tmp_path / "out", workers=2)
    while len(workers := children(process.pid)) < 3:  # two workers and multiprocessing's resource tracker
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.05)


def children(parent: int) -> list[int]:
    listed = Path(f"/proc/{parent}/task/{parent}/children").read_text(encoding="utf-8").split()
    return [int(pid) for pid in listed]


def alive(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return False


def partly_made(tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, int]) -> Path:
    """Stop a preparation between two commits; return its hidden folder."""
    monkeypatch.setattr(module, "BATCH_BYTES", 10_000)
    monkeypatch.setattr(module, "COMMIT_SECONDS", 0.0)
    writes = iter([True] * 12)

    class Stopped(BaseException):
        pass

    def stopping(self: object, chunk: object, write: Callable[..., None] = module.SplitWriter.write) -> None:
        if not next(writes, False):
            raise Stopped
        write(self, chunk)

    monkeypatch.setattr(module.SplitWriter, "write", stopping)
    recipe = Recipe(TextFiles(f"{corpus}/*.txt"), BPE(400), DOCUMENTS, 1)
    with pytest.raises(Stopped), DataProgress() as progress:
        recipe.prepare(tmp_path / "out", settings, progress)
    monkeypatch.undo()
    return tmp_path / ".partial-out"


def finished(tmp_path: Path, corpus: Path, settings: dict[str, int], capsys: pytest.CaptureFixture[str]) -> str:
    with DataProgress() as progress:
        Recipe(TextFiles(f"{corpus}/*.txt"), BPE(400), DOCUMENTS, 1).prepare(tmp_path / "out", settings, progress)
    expected = made(tmp_path / "expected", TextFiles(f"{corpus}/*.txt"), BPE(400))
    for name in ("train.bin", "val.bin", "tokenizer.json"):
        assert (tmp_path / "out" / name).read_bytes() == (expected / name).read_bytes()
    return capsys.readouterr().out


def test_an_unfinished_preparation_is_continued(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    partial_folder = partly_made(tmp_path, corpus, monkeypatch, {"a": 1})
    with (partial_folder / "train.unfinished").open("ab") as file:
        file.write(b"written after the last commit")
    assert "continuing where an earlier process stopped, after" in finished(tmp_path, corpus, {"a": 1}, capsys)


def test_other_settings_do_not_discard_an_unfinished_preparation(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = contents(partly_made(tmp_path, corpus, monkeypatch, {"a": 2}))
    with pytest.raises(ValueError, match=r"unfinished preparation of [\d,]+ tokens so far.*prepare.a: 2 → 1; undo"):
        finished(tmp_path, corpus, {"a": 1}, capsys)
    assert contents(tmp_path / ".partial-out") == left


def test_changed_text_does_not_discard_an_unfinished_preparation(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = contents(partly_made(tmp_path, corpus, monkeypatch, {"a": 1}))
    (corpus / "07.txt").write_text("something else")
    with pytest.raises(ValueError, match=r"unfinished preparation .*07\.txt.*remove the folder to start over"):
        finished(tmp_path, corpus, {"a": 1}, capsys)
    assert contents(tmp_path / ".partial-out") == left
    shutil.rmtree(tmp_path / ".partial-out")
    assert "continuing" not in finished(tmp_path, corpus, {"a": 1}, capsys)


@pytest.mark.parametrize("damage", [b"", b"x" * 50])
def test_a_damaged_file_makes_the_preparation_start_over(
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: bytes,
) -> None:
    left = partly_made(tmp_path, corpus, monkeypatch, {"a": 1}) / "train.unfinished"
    left.write_bytes(damage + left.read_bytes()[len(damage or b"xx") :])
    assert "train.unfinished: differs from its last commit" in finished(tmp_path, corpus, {"a": 1}, capsys)


@pytest.mark.parametrize("name", ["", "train.unfinished", "anything"])
def test_a_link_under_the_name_of_a_file_to_make_is_not_followed(tmp_path: Path, corpus: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("precious")
    place = tmp_path / ".partial-out" / name
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=f"{place}: a link"):
        made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), BPE(400))
    assert contents(tmp_path / "mine") == {"precious": b"precious"}


@pytest.mark.parametrize("name", ["notes.txt", "folder/notes.txt", "train.unfinished/notes.txt", ".tmp-notes.txt"])
def test_other_files_in_the_hidden_folder_are_not_removed(tmp_path: Path, corpus: Path, name: str) -> None:
    notes = tmp_path / ".partial-out" / name
    notes.parent.mkdir(parents=True)
    notes.write_text("precious")
    (tmp_path / ".partial-out" / "journal.json").write_text("{}")
    with pytest.raises(ValueError, match=r"/\.partial-out/\S+: not a file of lmtrain, .* move it away"):
        made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), BPE(400))
    assert notes.read_text() == "precious"


def test_an_unfinished_preparation_is_kept_while_its_text_is_missing(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = contents(partly_made(tmp_path, corpus, monkeypatch, {"a": 1}))
    corpus.rename(tmp_path / "elsewhere")  # for example on a disk that is not mounted
    with pytest.raises(ValueError, match="gone"):
        made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), BPE(400))
    assert contents(tmp_path / ".partial-out") == left
    (tmp_path / "elsewhere").rename(corpus)
    assert "continuing where an earlier process stopped" in finished(tmp_path, corpus, {"a": 1}, capsys)


def test_a_kill_between_the_last_two_steps_loses_nothing(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(module.os, "rename", lambda old, new: os.replace(old, new) if old.suffix else 1 / 0)
        with pytest.raises(ZeroDivisionError):
            made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), BPE(400))
    with monkeypatch.context() as patched:
        patched.setattr(module, "encode_in_processes", lambda *arguments: pytest.fail("encoded again"))
        made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), BPE(400))
    assert "continuing where an earlier process stopped" in capsys.readouterr().out
    assert contents(made(tmp_path / "whole", TextFiles(f"{corpus}/*.txt"), BPE(400))) == contents(tmp_path / "out")


def test_a_tokenizer_can_be_trained_on_a_share_of_one_long_text(tmp_path: Path) -> None:
    words = random.Random(0)
    text = " ".join("".join(words.choices("abcdefgh", k=5)) for _ in range(300_000))
    (tmp_path / "one.txt").write_text(text)
    folder = made(tmp_path / "out", TextFiles(str(tmp_path / "one.txt")), BPE(400, train_bytes=100_000), TAIL)
    meta = read_meta(folder)
    assert meta is not None
    assert meta.vocab_size == 400


def test_a_damaged_journal_makes_the_preparation_start_over(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (partly_made(tmp_path, corpus, monkeypatch, {"a": 1}) / "journal.json").write_text('{"format_version": 1}')
    assert "continuing" not in finished(tmp_path, corpus, {"a": 1}, capsys)


def test_a_file_name_that_is_not_utf_8_is_allowed(tmp_path: Path) -> None:
    """The texts are long, so they are held out by their names."""
    for number in range(8):
        (tmp_path / os.fsdecode(b"caf\xe9%d.txt" % number)).write_bytes(b"some words of a long text\n" * 50_000)
    source = TextFiles(f"{tmp_path}/*.txt")
    folder = made(tmp_path / "out", source, Bytes(), partial(by_document, val_share=0.5))
    meta = read_meta(folder)
    assert meta is not None
    assert sum(split.documents for split in meta.splits.values()) == 8
    assert changed_inputs(folder) == ""
    os.utime(tmp_path / os.fsdecode(b"caf\xe90.txt"))
    (tmp_path / os.fsdecode(b"caf\xe91.txt")).write_bytes(b"changed")
    assert "1.txt" in changed_inputs(folder)


@pytest.mark.parametrize("target_exists", [True, False])
def test_a_link_is_kept_and_leads_to_the_new_folder(tmp_path: Path, corpus: Path, target_exists: bool) -> None:
    (tmp_path / "disk").mkdir()
    if target_exists:
        (tmp_path / "disk" / "tokens").mkdir()
    (tmp_path / "data").symlink_to(tmp_path / "disk" / "tokens")
    with DataProgress() as progress:
        prepare(
            tmp_path / "data", {"a": 1}, lambda _: Recipe(TextFiles(f"{corpus}/*"), Bytes(), DOCUMENTS, 1), progress
        )
    assert (tmp_path / "data").is_symlink()
    assert read_meta(tmp_path / "disk" / "tokens") is not None


def mounting() -> list[str]:
    """Return a command prefix under which a shell may mount file systems; empty if that is not allowed here."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    with contextlib.suppress(OSError):
        if subprocess.run([*command, "mount -t tmpfs none /mnt"], capture_output=True, check=False).returncode == 0:
            return command
    return []


@pytest.mark.skipif(not mounting(), reason="needs its own mount namespace")
def test_a_mounted_empty_volume_is_refused_before_the_work(tmp_path: Path, corpus: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    script = f"""
from pathlib import Path
from lmtrain.data.prepare import prepare
from lmtrain.data.progress import DataProgress
with DataProgress() as progress:
    prepare(Path({str(volume)!r}), {{}}, None, progress)
"""
    command = f"mount -t tmpfs none {volume} && exec {sys.executable} -c '{script.replace(chr(39), chr(34))}'"
    run = subprocess.run([*mounting(), command], capture_output=True, text=True, check=False)
    assert f"data.path={volume}: can't be replaced" in run.stderr
    assert f"give a folder inside it: data.path={volume}/tokens" in run.stderr


# Mistakes


@pytest.mark.parametrize(
    ("content", "files", "message"),
    [
        (b"", "nothing*.txt", r"prepare.source.files=.*nothing\*.txt: no such file"),
        (b"ok \xff\xfe not", "*.txt", "a.txt.*UTF-8.*byte 3"),
        (b"", "*.txt", "a.txt"),
        (b"a", "*.txt", "only 0 tokens are left for the train split"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path: Path, content: bytes, files: str, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        made(tmp_path / "out", TextFiles(str(tmp_path / files)), BPE(300), TAIL)
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_too_little_space_is_reported_before_the_work(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**9, 10**9, 10**6))
    with pytest.raises(OSError, match=r"the tokens need about 0\.1 GB, but only 0\.0 GB are free; free some"):
        made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), Bytes())
    assert not (tmp_path / ".partial-out" / "train.bin").exists()


def prepared(path: Path, settings: dict[str, object], recipe: Recipe, **options: bool) -> tuple[Meta, float]:
    with DataProgress() as progress:
        return prepare(path, settings, lambda _: recipe, progress, **options)


def test_a_second_call_does_nothing_and_other_settings_are_noticed(tmp_path: Path, corpus: Path) -> None:
    recipe = Recipe(TextFiles(f"{corpus}/*.txt"), BPE(300), TAIL)
    settings = {"tokenizer": {"vocab_size": 300}, "files": ["x"], "workers": None}
    first, seconds = prepared(tmp_path / "out", settings, recipe)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    again, no_seconds = prepared(tmp_path / "out", {**settings, "workers": 7}, recipe, check_text=True)
    assert seconds > 0
    assert no_seconds == 0
    assert first == again
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    with pytest.raises(ValueError, match=r"prepare.tokenizer.vocab_size: 300 → 301"):
        prepared(tmp_path / "out", {**settings, "tokenizer": {"vocab_size": 301}}, recipe)


def test_changed_text_is_noticed(tmp_path: Path, corpus: Path) -> None:
    recipe = Recipe(TextFiles(f"{corpus}/*.txt"), Bytes(), DOCUMENTS)
    prepared(tmp_path / "out", {}, recipe)
    assert changed_inputs(tmp_path / "out") == ""
    os.utime(corpus / "02.txt")  # does not change the contents
    assert changed_inputs(tmp_path / "out") == ""
    (corpus / "03.txt").write_text("changed")
    (corpus / "new.txt").write_text("new")
    assert re.fullmatch(rf"{corpus}/03\.txt: [\d,]+ → 7 bytes", changed_inputs(tmp_path / "out"))
    prepared(tmp_path / "out", {}, recipe)  # training continues with the existing tokens
    with pytest.raises(ValueError, match=r"was prepared from other text .*03\.txt.*new\.txt: new.*remove the folder"):
        prepared(tmp_path / "out", {}, recipe, check_text=True)


def test_the_users_own_files_are_not_overwritten(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("x")
    with pytest.raises(ValueError, match=r"has no meta\.json"):
        prepared(tmp_path / "out", {}, Recipe(TextFiles(f"{corpus}/*.txt"), Bytes(), DOCUMENTS))
    assert (tmp_path / "out" / "precious.txt").read_text() == "x"


def test_for_a_bare_token_folder_the_message_names_the_data_choice_that_reads_it(tmp_path: Path, corpus: Path) -> None:
    (tmp_path / "bare").mkdir()
    np.arange(500, dtype="<u2").tofile(tmp_path / "bare" / "train.bin")
    with pytest.raises(
        ValueError, match=rf"has no meta\.json.*; to train on it, use data=tokens data\.path={tmp_path}/bare"
    ):
        prepared(tmp_path / "bare", {}, Recipe(TextFiles(f"{corpus}/*.txt"), Bytes(), DOCUMENTS))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 9}, "format version 9"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"splits": {"train": {"tokens": 1}}}, "not a meta.json of token files"),
        ({"surprise": 1}, "not a meta.json of token files"),
    ],
)
def test_a_meta_json_with_other_contents_is_refused(
    tmp_path: Path, corpus: Path, change: dict[str, object], message: str
) -> None:
    folder = made(tmp_path / "out", TextFiles(f"{corpus}/*.txt"), Bytes(), TAIL)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, **change}))
    with pytest.raises(ValueError, match=message):
        read_meta(folder)
