"""Tests of `inspect`: its findings in good, bare and damaged folders, and the files it writes."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lmtrain.commands.inspect import main
from lmtrain.data.meta import DTYPES, Meta, Shard, Split, TokenizerFile, write_meta
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE, save_tokenizer
from lmtrain.data.tokenizer import Bytes
from lmtrain.errors import ConfigError

END = 256
TEXTS = {
    "train": [f"The {word} of number {i} is told here, and then it ends." * 3 for i, word in enumerate("abcdefghij")],
    "val": ["Nobody has seen this one before, says its only reader, who may be wrong about it." * 2, "Short."],
}
TEXTS["train"] += [TEXTS["train"][2], TEXTS["train"][2], "Short."]
TEXTS["val"] += [TEXTS["train"][5]]


def ids(texts: list[str]) -> np.ndarray:
    return np.concatenate([[*text.encode(), END] for text in texts])


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def prepared(folder: Path, *, shards: int = 0, dtype: str = "uint16", **changed: Any) -> Path:
    """Write the texts as `prepare` would, with train in `shards` files and the `changed` fields in meta.json."""
    folder.mkdir(parents=True)
    splits = {}
    for split, texts in TEXTS.items():
        tokens, files = ids(texts), []
        for number, part in enumerate(np.array_split(tokens, shards if shards and split == "train" else 1)):
            path = folder / (f"{split}_{number:03}.bin" if shards and split == "train" else f"{split}.bin")
            path.write_bytes(part.astype(DTYPES[dtype]).tobytes())
            files.append(Shard(path.name, len(part), sha256(path)))
        whole = hashlib.sha256(tokens.astype(DTYPES[dtype]).tobytes()).hexdigest()
        text_bytes = sum(len(text.encode()) for text in texts)
        listed = tuple(files) if len(files) > 1 else ()
        splits[split] = Split(len(tokens), int(tokens.max()), len(texts), text_bytes, whole, listed)
    save_tokenizer(folder, Bytes().fit(None))
    stored = TokenizerFile("bytes", TOKENIZER_FILE, sha256(folder / TOKENIZER_FILE))
    fields = {
        "dtype": dtype,
        "vocab_size": 257,
        "tokenizer": stored,
        "end_of_text": END,
        "splits": splits,
        "recipe": {},
    }
    write_meta(folder, Meta(**{**fields, **changed}))
    return folder


def bare(folder: Path, name: str = "{}.bin", header: bool = False) -> Path:
    folder.mkdir()
    for split, texts in TEXTS.items():
        head = np.zeros(256 * header, "<i4")
        head[:3] = (20240520, 1, len(ids(texts)))[: len(head)]
        (folder / name.format(split)).write_bytes(head.tobytes() + ids(texts).astype("<u2").tobytes())
    return folder


def inspected(folder: Path, *flags: str, expect: int = 0) -> dict[str, Any]:
    """Run `inspect` and return the content of its `--json` file, parsed as strict JSON."""
    file = folder.parent / "numbers.json"
    assert main([str(folder), "--json", str(file), *flags]) == expect
    (numbers,) = json.loads(file.read_text(), parse_constant=pytest.fail)["folders"]
    return dict(numbers)


@pytest.mark.parametrize("how", [{}, {"shards": 4}, {"dtype": "uint32"}])
def test_a_prepared_folder(tmp_path, capsys, how):
    found = inspected(prepared(tmp_path / "data", **how))
    assert (found["vocab_size"], found["end_of_text"], found["problems"], found["notes"]) == (257, END, [], [])
    train, val = found["splits"]["train"], found["splits"]["val"]
    assert (train["tokens"], val["tokens"]) == (len(ids(TEXTS["train"])), len(ids(TEXTS["val"])))
    assert len(train["files"]) == how.get("shards", 1)
    assert train["token_counts"] == np.bincount(ids(TEXTS["train"])).tolist()
    assert train["bytes_per_token"] == pytest.approx(1 - 13 / train["tokens"])
    assert sum(train["documents"]["documents_of_length"]) == train["documents"]["documents"] == 13
    assert train["documents"]["longer_than"]["512"] == 0
    lengths = sorted(len(text) for text in TEXTS["val"])
    assert [val["documents"][name] for name in ("min", "median", "p95", "max")] == [lengths[i] for i in (0, 1, 2, 2)]

    # The planted repeats: two copies of a text in train, and two texts of val that are also in train.
    copied = len(TEXTS["train"][2])
    repeated, in_train = train["documents"]["repeated"], val["documents"]["in_train"]
    assert (repeated["repeated"], repeated["repeated_tokens"], repeated["exact"]) == (2, 2 * copied, True)
    assert train["documents"]["in_train"] is None
    assert (in_train["repeated"], in_train["repeated_tokens"]) == (2, len("Short.") + len(TEXTS["val"][2]))
    assert val["documents"]["repeated"]["repeated"] == 0
    assert val["passages"]["in_train"]["repeated"] == len(TEXTS["val"][2]) - 63  # windows of 64 tokens within the text

    output = capsys.readouterr().out
    assert "2 (66.7%; " in output
    assert "' ' 32" in output
    assert "checksums, ids and tokenizer agree with meta.json" in output
    for split, texts in TEXTS.items():
        for sample in found["splits"][split]["samples"]:
            assert sample["text"] in {text[:160] for text in texts}
            assert sample["text"][:50] in output


def test_the_loss_of_a_unigram_model_in_bits_per_byte(tmp_path):
    val = inspected(prepared(tmp_path / "data"))["splits"]["val"]
    counts = np.bincount(ids(TEXTS["train"]), minlength=257) + 1
    loss = -np.log(counts / counts.sum())[ids(TEXTS["val"])].mean()
    assert val["unigram_loss_nats"] == pytest.approx(loss)
    assert val["unigram_bits_per_byte"] == pytest.approx(loss / np.log(2) * val["tokens"] / val["text_bytes"])
    assert val["entropy_nats"] < loss


def test_a_bare_folder(tmp_path, capsys):
    folder = bare(tmp_path / "bare")
    found = inspected(folder)
    assert found["splits"]["train"]["documents"] is None
    assert found["splits"]["val"]["passages"]["in_train"]["repeated"] > 0
    assert "give it with --end-of-text" in capsys.readouterr().out

    told = inspected(folder, "--end-of-text", str(END))
    assert told["splits"]["val"]["documents"]["in_train"]["repeated"] == 2
    assert told["splits"]["val"]["samples"][0]["text"] is None
    assert "' '" not in capsys.readouterr().out

    with_text = inspected(folder, "--tokenizer", str(prepared(tmp_path / "other")))
    assert with_text["end_of_text"] == END
    assert f"{TEXTS['val'][2][:60]}" in capsys.readouterr().out
    assert told["splits"]["train"]["token_counts"] == with_text["splits"]["train"]["token_counts"]


def test_shards_with_a_header(tmp_path):
    found = inspected(bare(tmp_path / "shards", "fineweb_{}_000001.bin", header=True), "--end-of-text", str(END))
    assert list(found["splits"]) == ["train", "val"]
    assert found["splits"]["train"]["tokens"] == len(ids(TEXTS["train"]))
    assert found["splits"]["train"]["bytes"] == 1024 + 2 * len(ids(TEXTS["train"]))
    assert found["splits"]["val"]["documents"]["in_train"]["repeated"] == 2


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def damage_tokens(folder: Path) -> str:
    overwrite(folder / "train_001.bin", 10, b"xy")
    return "train_001.bin: damaged or changed since it was prepared"


def too_large_an_id(folder: Path) -> str:
    overwrite(folder / "train_002.bin", 10, b"\xff\xff\xff\xff")
    return "train_002.bin: token 5 is 65535, not below the vocabulary size of 257 (2 such tokens in train)"


def cut_off(folder: Path) -> str:
    with (folder / "train_003.bin").open("r+b") as file:
        file.truncate(20)
    return "train_003.bin: has 10 tokens, but meta.json says"


def missing_shard(folder: Path) -> str:
    (folder / "train_000.bin").unlink()
    return "train_000.bin: no such file"


def another_tokenizer(folder: Path) -> str:
    with (folder / TOKENIZER_FILE).open("ab") as file:
        file.write(b" ")
    return "tokenizer.json: not the tokenizer that meta.json names"


def no_tokenizer(folder: Path) -> str:
    (folder / TOKENIZER_FILE).unlink()
    return "tokenizer.json: no such file"


def broken_tokenizer(folder: Path) -> str:
    (folder / TOKENIZER_FILE).write_text("{")
    return "tokenizer.json: not a file that the tokenizers library reads"


def set_train_fields(folder: Path, **fields: Any) -> None:
    """Change fields of the train split in meta.json."""
    meta = json.loads((folder / "meta.json").read_text())
    meta["splits"]["train"] |= fields
    (folder / "meta.json").write_text(json.dumps(meta))


def wrong_checksum_of_all_shards(folder: Path) -> str:
    set_train_fields(folder, sha256="0" * 64)
    return f"meta.json: says that train has the SHA-256 {'0' * 64}, but its shards together have"


def wrong_largest_id(folder: Path) -> str:
    set_train_fields(folder, max_id=11)
    return "its largest id is 256, but meta.json says 11"


@pytest.mark.parametrize(
    "damage",
    [
        damage_tokens,
        too_large_an_id,
        cut_off,
        missing_shard,
        another_tokenizer,
        no_tokenizer,
        broken_tokenizer,
        wrong_checksum_of_all_shards,
        wrong_largest_id,
    ],
)
def test_damage_is_named_and_the_rest_still_shown(tmp_path, capsys, damage):
    folder = prepared(tmp_path / "data", shards=4)
    named = damage(folder)
    found = inspected(folder, expect=2)
    assert any(named in problem for problem in found["problems"]), found["problems"]
    output = capsys.readouterr().out
    assert f"problem: {folder}" in output
    assert named in output
    assert found["splits"]["val"]["documents"]["documents"] == 3
    assert f"{len(ids(TEXTS['val'])):,}" in output


def test_suspicious_data_is_noted(tmp_path):
    folder = prepared(tmp_path / "data")
    (folder / "test.bin").write_bytes(b"1234")
    set_train_fields(folder, documents=2)
    notes = inspected(folder)["notes"]
    assert "test.bin: left out, not listed in meta.json" in notes
    assert any(note.startswith("train: has 13 end-of-text ids, but meta.json says 2") for note in notes)
    assert any("id 255 does not occur" in note for note in inspected(folder, "--end-of-text", "255")["notes"])


@pytest.mark.parametrize("samples", [0, 2, 50])
def test_samples(tmp_path, samples):
    folder = prepared(tmp_path / "data")
    found = inspected(folder, "--samples", str(samples), "--seed", "3")
    again = inspected(folder, "--samples", str(samples), "--seed", "3")
    assert found == again
    texts = [sample["text"] for sample in found["splits"]["train"]["samples"]]
    assert len(texts) == min(samples, 13) or samples == 50
    assert bool(texts) == bool(samples)


def test_text_that_would_move_the_cursor_is_made_harmless(tmp_path, capsys):
    folder = bare(tmp_path / "bare")
    tokens = np.array([*b"\x1b[31mred [bold]fat[/bold]", END] * 5)
    (folder / "val.bin").write_bytes(tokens.astype("<u2").tobytes())
    inspected(folder, "--tokenizer", str(prepared(tmp_path / "other")))
    output = capsys.readouterr().out
    assert "\x1b[31m" not in output
    assert "\ufffd[31mred [bold]fat[/bold]" in output


@pytest.mark.parametrize(
    ("documents", "shown", "hidden"),
    [
        (1, "tokens in each", "median"),
        (6, "shortest, 95%, longest", "longer than"),
        (40, "longer than 512", "tokens in each"),
    ],
)
def test_few_documents_are_listed_individually(tmp_path, capsys, documents, shown, hidden):
    for split in ("train", "val"):
        np.tile(np.append(np.arange(600) % 50, 60), documents).astype("<u2").tofile(tmp_path / f"{split}.bin")
    assert main([str(tmp_path), "--end-of-text", "60", "--samples", "0"]) == 0
    output = capsys.readouterr().out
    assert shown in output
    assert hidden not in output


def test_the_type_of_bare_files_can_be_given(tmp_path, capsys):
    np.arange(5_000, dtype="<i8").tofile(tmp_path / "train.bin")
    assert main([str(tmp_path)]) == 2
    output = " ".join(capsys.readouterr().out.split())
    assert "looks like int64" in output
    assert "--dtype int64" in output
    assert main([str(tmp_path), "--dtype", "int64"]) == 0
    assert "5,000 tokens" in capsys.readouterr().out


def test_lost_text_is_shown(tmp_path, capsys):
    meta = json.loads((prepared(tmp_path / "data") / "meta.json").read_text())
    meta["splits"]["train"] |= {"checked_bytes": 100, "lost_share": 0.25}
    (tmp_path / "data" / "meta.json").write_text(json.dumps(meta))
    assert main([str(tmp_path / "data")]) == 0
    assert re.search(r"text without a token +│ +25.0% +│ +–", capsys.readouterr().out)


@pytest.mark.slow
def test_a_picture_has_a_row_for_each_folder(tmp_path, capsys):
    """Also folders with very little data give no division by zero and no empty axis."""
    image = pytest.importorskip("matplotlib.image")
    folders = [prepared(tmp_path / "one"), bare(tmp_path / "two"), tmp_path / "one_id", tmp_path / "ends_only"]
    (folders[1] / "val.bin").unlink()
    splits = {}
    for split in ("train", "val"):
        for folder in folders[2:]:
            folder.mkdir(exist_ok=True)
            (folder / f"{split}.bin").write_bytes(np.full(3, 5, "<u2").tobytes())
        splits[split] = Split(3, 5, 3, 0, sha256(folder / f"{split}.bin"))
    write_meta(folders[3], Meta("uint16", 6, TokenizerFile("none", "", ""), 5, splits, {}))

    assert main([*map(str, folders), "--png", str(tmp_path / "all.png"), "--json", str(tmp_path / "all.json")]) == 0
    numbers = json.loads((tmp_path / "all.json").read_text())["folders"]
    assert [len(folder["splits"]) for folder in numbers] == [2, 1, 2, 2]
    assert numbers[2]["splits"]["val"]["entropy_bits"] == 0
    assert numbers[3]["splits"]["val"]["documents"] is None
    picture = image.imread(tmp_path / "all.png")[..., :3]
    assert picture.shape[1] >= 1200
    for row in np.array_split(picture, 4):
        for panel in np.array_split(row, 3, axis=1):  # has ink, in several colours besides white
            assert 0.01 < (panel.min(axis=2) < 0.9).mean() < 0.7
            assert len(np.unique((panel * 4).round() @ [25, 5, 1])) > 5


def test_without_matplotlib_a_picture_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ConfigError, match=r"pip install 'lmtrain\[plot\]'"):
        main([str(prepared(tmp_path / "data")), "--png", str(tmp_path / "a.png")])
    assert main([str(tmp_path / "data")]) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["{}/nowhere"], "{}/nowhere: no such folder"),
        (["{}/data/train.bin"], "is a file; give its folder"),
        (["{}"], "{}: has no token files (*.bin); there are some in data"),
        (["{}/data", "--samples", "-1"], "--samples -1: must be at least 0"),
        (["{}/data", "--end-of-text", "-5"], "--end-of-text -5: must be at least 0"),
        (
            ["{}/data", "--json", "{}/none/a.json"],
            "--json {}/none/a.json: the folder {}/none does not exist; create it first",
        ),
        (["{}/data", "--png", "{}/data"], "--png {}/data: is a folder"),
        (["{}/data", "--tokenizer", "{}"], "--tokenizer {}: no tokenizer.json there"),
    ],
)
def test_mistakes(tmp_path, flags, message):
    prepared(tmp_path / "data")
    with pytest.raises(ConfigError) as error:
        main([flag.format(tmp_path) for flag in flags])
    assert message.format(tmp_path, tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_meta_that_cannot_be_read(tmp_path):
    folder = prepared(tmp_path / "data")
    (folder / "meta.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"meta\.json: not a meta\.json of token files"):
        main([str(folder)])


def test_the_command_line(tmp_path, cli):
    prepared(tmp_path / "data" / "good")
    (prepared(tmp_path / "data" / "bad") / "val.bin").write_bytes(ids(TEXTS["train"]).astype("<u2").tobytes())
    done = cli("inspect", "data/good", "data/bad")
    assert done.returncode == 2
    assert "problem: data/bad/val.bin: has" in done.stdout
    assert done.stderr == ""
    table = [line for line in done.stdout.splitlines() if line.startswith(("│", "┃"))]
    assert max(map(len, table)) <= 100
    missing = cli("inspect", "data/goood")
    assert (missing.returncode, missing.stderr) == (2, "config error: data/goood: no such folder\n")


def test_it_needs_no_torch(tmp_path):
    folder = prepared(tmp_path / "data")
    script = (
        "import sys; from lmtrain.__main__ import dispatch; dispatch(sys.argv[1:]); assert 'torch' not in sys.modules"
    )
    flags = ["inspect", str(folder), "--json", str(tmp_path / "a.json")]
    environment = os.environ | {"PYTHONIOENCODING": "utf-8"}
    subprocess.run([sys.executable, "-c", script, *flags], check=True, capture_output=True, timeout=60, env=environment)
