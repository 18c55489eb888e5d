"""Token folders made with datatrove have the same documents as those of `prepare`, also after kills."""

import gzip
import hashlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

if importlib.util.find_spec("datatrove") is None or importlib.util.find_spec("orjson") is None:
    pytest.skip("needs lmtrain[datatrove]", allow_module_level=True)

from datatrove.data import Document as TroveDocument

from lmtrain.data.loader import TokenLoader
from lmtrain.data.meta import read_meta
from lmtrain.data.stored_tokenizer import load_tokenizer
from lmtrain.data.text.holdout import by_document, tail_of_each_document
from lmtrain.data.text.source import Document
from lmtrain.data.token_files import TokenFiles
from lmtrain.data.tokenizer import BPE, Bytes
from lmtrain.data.writing import datatrove as token_shards
from lmtrain.data.writing import rank_shards
from lmtrain.data.writing.datatrove import Finish, TokenShards
from lmtrain.data.writing.rank_shards import finish_token_folder, unfinished_folder
from lmtrain.errors import DataError

EXAMPLE = Path(__file__).parents[3] / "experiments" / "datatrove" / "tokenize_jsonl.py"
TASKS = 3
HOLDOUT = partial(by_document, val_share=0.2)


def text(number: int) -> str:
    return f"{number}: the quick brown fox — 狐狸 🦊\n\tdef f(x): return x\r\n<|endoftext|>" * (1 + number % 7)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for file in range(4):
        lines = "".join(json.dumps({"text": text(number)}) + "\n" for number in range(25 * file, 25 * file + 25))
        if file % 2:
            (folder / f"{file}.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
        else:
            (folder / f"{file}.jsonl").write_text(lines)
    return folder


def numbers(rank: int, tasks: int = TASKS) -> list[int]:
    """Return the numbers of the documents that datatrove gives to a rank, which gets every `tasks`-th file."""
    return [number for file in range(4)[rank::tasks] for number in range(25 * file, 25 * file + 25)]


def shards_step(folder: Path, **changed: object) -> TokenShards:
    return TokenShards(folder, **{"tokenizer": Bytes(), "holdout": HOLDOUT, "shard_tokens": 2_000, **changed})  # type: ignore[arg-type]


def run_rank(step: TokenShards, rank: int, tasks: int = TASKS, *, killed_after: int | None = None) -> None:
    """Run a rank like an executor, or only a part of it."""

    def documents() -> object:
        for read, number in enumerate(numbers(rank, tasks)):
            if read == killed_after:
                raise KeyboardInterrupt
            yield TroveDocument(text=text(number), id=str(number))

    step.run(documents(), rank, tasks)


def run_all(step: TokenShards, tasks: int = TASKS) -> TokenShards:
    for rank in range(tasks):
        run_rank(step, rank, tasks)
    return step


def contents(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("reference") / "web"
    run_all(shards_step(folder))
    finish_token_folder(folder)
    return folder


def documents_of(folder: Path, split: str) -> list[str]:
    stored = load_tokenizer(folder)
    assert stored.end_of_text is not None
    files = TokenFiles(folder, split)
    tokens = files.span(0, len(files))
    ends = np.flatnonzero(tokens == stored.end_of_text) + 1
    assert ends[-1] == len(tokens)
    return [stored.decode(part[:-1].tolist()) for part in np.split(tokens, ends[:-1])]


def test_documents_are_in_rank_order_and_held_out_as_in_prepare(reference: Path) -> None:
    expected: dict[str, list[str]] = {"train": [], "val": []}
    for number in (number for rank in range(TASKS) for number in numbers(rank)):
        for held in HOLDOUT(Document(str(number), text(number))):
            expected[held.split].append(held.text)
    assert documents_of(reference, "train") == expected["train"]
    assert documents_of(reference, "val") == expected["val"]


def test_training_reads_the_folder(reference: Path) -> None:
    meta = read_meta(reference)
    assert meta is not None
    for split, counted in meta.splits.items():
        files = TokenFiles(reference, split)
        tokens = files.span(0, len(files))
        assert files.fingerprint == counted.sha256 == hashlib.sha256(tokens.tobytes()).hexdigest()
        assert (counted.tokens, counted.max_id) == (len(tokens), tokens.max())
        assert [shard.file for shard in counted.shards] == [
            f"{split}_{number:06}.bin" for number in range(len(counted.shards))
        ]
        assert max(shard.tokens for shard in counted.shards) <= 2_000
        for shard in counted.shards:
            assert shard.sha256 == hashlib.sha256((reference / shard.file).read_bytes()).hexdigest()
        texts = documents_of(reference, split)
        assert (counted.documents, counted.bytes) == (len(texts), sum(len(each.encode()) for each in texts))
    assert len(meta.splits["train"].shards) > TASKS
    assert meta.tokenizer.sha256 == hashlib.sha256((reference / meta.tokenizer.file).read_bytes()).hexdigest()
    assert {path.suffix for path in reference.iterdir()} == {".bin", ".json"}
    assert not unfinished_folder(reference).exists()
    x, y = TokenLoader(str(reference), "train", batch_size=2, block_size=3_000, seed=0, order="sequential").batch(0)
    tokens = TokenFiles(reference, "train").span(0, 3_001)
    assert (x[0].numpy() == tokens[:-1]).all()
    assert (y[0].numpy() == tokens[1:]).all()


def test_one_task_makes_the_same_tokens_as_prepare(tmp_path: Path, corpus: Path) -> None:
    pytest.importorskip("datasets", reason="needs lmtrain[data]")
    from lmtrain.data.prepare import Recipe
    from lmtrain.data.progress import DataProgress
    from lmtrain.data.text.huggingface import HuggingFace

    source = HuggingFace("json", files=f"{corpus}/*.jsonl*")
    with DataProgress() as progress:
        Recipe(source, BPE(400), HOLDOUT, workers=1).prepare(tmp_path / "prepared", {}, progress)
    run_all(shards_step(tmp_path / "web", tokenizer=tmp_path / "prepared"), tasks=1)
    meta, prepared = finish_token_folder(tmp_path / "web"), read_meta(tmp_path / "prepared")
    assert prepared is not None
    for split, counted in meta.splits.items():
        assert replace(counted, shards=()) == replace(prepared.splits[split], text_sha256="")
    assert (meta.tokenizer, meta.end_of_text) == (prepared.tokenizer, prepared.end_of_text)
    assert contents(tmp_path / "web").items() >= {
        (name, sha256) for name, sha256 in contents(tmp_path / "prepared").items() if name.startswith("tokenizer")
    }


def test_long_documents_come_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_shards, "PART_BYTES", 100)
    folder = tmp_path / "web"
    run_all(shards_step(folder, holdout=partial(tail_of_each_document, val_share=0.3)))
    finish_token_folder(folder)
    train, val = documents_of(folder, "train"), documents_of(folder, "val")
    texts = [text(number) for rank in range(TASKS) for number in numbers(rank)]
    assert [start + end for start, end in zip(train, val, strict=True)] == texts


# A script for another process, which can be killed.
SCRIPT = """
import os, signal, sys
from functools import partial
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.readers import JsonlReader
from lmtrain.data.writing import datatrove as token_shards
from lmtrain.data.text.holdout import by_document
from lmtrain.data.tokenizer import Bytes

texts, folder, logs, killed = sys.argv[1:]

def kill(data, rank, world_size):
    for number, document in enumerate(data):
        if killed == "True" and (rank, number) == (1, 20):
            os.kill(os.getpid(), signal.SIGKILL)
        yield document

token_shards.BATCH_BYTES = 500  # so that some tokens are on the disk at the kill
shards = token_shards.TokenShards(folder, Bytes(), partial(by_document, val_share=0.2), 2_000)
ranks = LocalPipelineExecutor([JsonlReader(texts), kill, shards], tasks=3, workers=1, logging_dir=logs + "/ranks")
LocalPipelineExecutor([token_shards.Finish(folder)], tasks=1, depends=ranks, logging_dir=logs + "/finish").run()
"""


def run_script(corpus: Path, folder: Path, *, killed: bool) -> str:
    """Run the script, and return its error output."""
    errors = folder.with_name("errors.txt")
    command = [sys.executable, "-c", SCRIPT, corpus, folder, folder.with_name("logs"), str(killed)]
    with errors.open("w") as file, subprocess.Popen(command, stderr=file, start_new_session=True) as process:
        code = process.wait(timeout=60)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # the processes that datatrove had no time to stop
    assert code == (-signal.SIGKILL if killed else 0), errors.read_text()
    return errors.read_text()


@pytest.mark.slow
def test_a_killed_rank_is_run_again(tmp_path: Path, corpus: Path, reference: Path) -> None:
    folder = tmp_path / "web"
    run_script(corpus, folder, killed=True)
    hidden = unfinished_folder(folder)
    assert not folder.exists()
    assert [path.name for path in hidden.glob("[0-9]*")] == ["00000"]
    assert len(list((hidden / ".00001").glob("train_*.bin"))) > 1
    with pytest.raises(DataError, match=r"ranks 1, 2 of 3 did not finish.*completions/RANK"):
        finish_token_folder(folder)
    kept = {path.stat().st_ino for path in (hidden / "00000").glob("*.bin")}
    assert "Skipping 1 already completed tasks" in run_script(corpus, folder, killed=False)
    assert contents(folder) == contents(reference)
    assert kept <= {path.stat().st_ino for path in folder.iterdir()}


def test_a_rank_that_runs_again_replaces_only_its_own_files(tmp_path: Path, reference: Path) -> None:
    step = run_all(shards_step(tmp_path / "web"))
    hidden = unfinished_folder(tmp_path / "web")
    others = {path: path.stat().st_mtime_ns for rank in (0, 2) for path in (hidden / f"{rank:05}").iterdir()}
    with pytest.raises(KeyboardInterrupt):
        run_rank(step, 1, killed_after=3)
    with pytest.raises(DataError, match="rank 1 of 3 did not finish"):
        finish_token_folder(tmp_path / "web")
    run_rank(step, 1)
    assert {path: path.stat().st_mtime_ns for path in others} == others
    finish_token_folder(tmp_path / "web")
    assert contents(tmp_path / "web") == contents(reference)


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [flip_a_bit, Path.unlink, lambda path: os.truncate(path, 100), lambda path: path.write_bytes(b"")],
    ids=["bit", "missing", "short", "empty"],
)
def test_a_damaged_rank_is_named(tmp_path: Path, reference: Path, damage: Callable[[Path], object]) -> None:
    folder = tmp_path / "web"
    step = run_all(shards_step(folder))
    damage(unfinished_folder(folder) / "00002" / "val_000000.bin")
    with pytest.raises(DataError, match=r"00002/val_000000.bin: missing or damaged; .* of rank 2; run the same"):
        finish_token_folder(folder)
    assert not folder.exists()
    run_rank(step, 2)
    finish_token_folder(folder)
    assert contents(folder) == contents(reference)


class Killed(BaseException):
    pass


def test_finish_can_be_killed_anywhere(tmp_path: Path, reference: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "web"
    step = run_all(shards_step(folder))
    rename, rmtree = os.rename, rank_shards.shutil.rmtree
    left = 0

    def or_killed(call: Callable[..., None]) -> Callable[..., None]:
        def wrapped(*arguments: object) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                raise Killed
            call(*arguments)

        return wrapped

    for done in range(100):  # killed at its first rename, at its second, …
        left = done
        with monkeypatch.context() as patched:
            patched.setattr(os, "rename", or_killed(rename))
            patched.setattr(rank_shards.shutil, "rmtree", or_killed(rmtree))
            try:
                finish_token_folder(folder)
                break
            except Killed:
                assert not folder.exists() or contents(folder) == contents(reference)
        if (unfinished_folder(folder) / "tokens").exists():
            with pytest.raises(DataError, match="is finished"):
                run_rank(step, 0)
    assert done > 2
    assert contents(folder) == contents(reference)
    assert finish_token_folder(folder) == read_meta(folder)
    assert not unfinished_folder(folder).exists()


def test_a_finished_folder_is_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    step = run_all(shards_step(folder))
    finish_token_folder(folder)
    before = contents(folder)
    shards_step(folder)  # the same script again, of which datatrove would run nothing
    with pytest.raises(DataError, match=r"web: is finished"):
        run_rank(step, 0)
    with pytest.raises(DataError, match=r"was begun with other settings \(shard_tokens: 2000 → 5\)"):
        shards_step(folder, shard_tokens=5)
    assert contents(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["web"]


def test_settings_and_ranks_that_do_not_fit_together_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "web"
    with pytest.raises(DataError, match="nothing to finish"):
        finish_token_folder(folder)
    with pytest.raises(ValueError, match="kind bpe learns from text; train it on a sample with `lmtrain prepare`"):
        shards_step(folder, tokenizer=BPE(300))
    step = shards_step(folder)
    with pytest.raises(DataError, match="no rank has finished"):
        finish_token_folder(folder)
    with pytest.raises(DataError, match=r"other settings \(holdout.val_share: 0.2 → 0.5\)"):
        shards_step(folder, holdout=partial(by_document, val_share=0.5))
    run_rank(step, 0, tasks=3)
    run_rank(step, 1, tasks=2)
    with pytest.raises(DataError, match="ranks of pipelines with 2 and 3 tasks, whose documents overlap"):
        finish_token_folder(folder)
    with pytest.raises(ValueError, match="tasks=2: must be 1"):
        Finish(folder).run(None, 0, 2)
    nothing_held_out = shards_step(tmp_path / "all", holdout=partial(by_document, val_share=1e-9))
    run_rank(nothing_held_out, 0, tasks=1)
    with pytest.raises(DataError, match="all: the val split has only 0 tokens"):
        finish_token_folder(tmp_path / "all")


def test_ranks_without_documents_write_no_shards(tmp_path: Path, reference: Path) -> None:
    folder = tmp_path / "web"
    run_all(shards_step(folder, shard_tokens=1 << 30), tasks=9)  # for four files
    meta = finish_token_folder(folder)
    assert len(meta.splits["train"].shards) == 4
    assert sorted(documents_of(folder, "train")) == sorted(documents_of(reference, "train"))


# A stand-in for Slurm, which runs a whole array at once and waits for it.
SLURM = {
    "sbatch": """
        for script; do true; done  # the last argument
        last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$script")
        if ! grep -q merge_stats "$script"; then
            echo "$@" >> "$SLURM_RECORD/calls"
            cp "$script" "$SLURM_RECORD/script-$last"
            export SLURM_NODELIST=here
            for task in $(seq 0 "$last"); do SLURM_ARRAY_TASK_ID=$task bash "$script" >&2 & done
            wait
        fi
        echo "Submitted batch job $((40 + last))"
    """,
    "srun": 'while [ "$1" != launch_pickled_pipeline ]; do shift; done; exec "$@"',
    "scontrol": "echo here",
}


def run_example(folder: Path, *arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        [sys.executable, EXAMPLE, *map(str, arguments)],
        cwd=folder,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["local", "slurm"])
def test_the_example_runs_several_ranks_at_once(tmp_path: Path, corpus: Path, reference: Path, executor: str) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, script in SLURM.items():
        (commands / name).write_text(f"#!/bin/bash\n{script}")
        (commands / name).chmod(0o755)
    path = f"{commands}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    options = ["--tokenizer", reference, "--val-share", 0.2, "--shard-tokens", 2_000, "--tasks", TASKS, "--workers", 2]
    options += ["--executor", executor, "--partition", "some"]
    run_example(tmp_path, corpus, "data/web", *options, PATH=path, SLURM_RECORD=str(tmp_path))
    made, expected = contents(tmp_path / "data" / "web"), contents(reference)
    del made["meta.json"], expected["meta.json"]  # their recipes differ in the tokenizer's setting
    assert made == expected
    assert read_meta(tmp_path / "data" / "web").splits == read_meta(reference).splits  # type: ignore[union-attr]
    if executor == "slurm":
        script = (tmp_path / "script-2").read_text()
        assert "#SBATCH --partition=some\n" in script
        assert "#SBATCH --array=0-2%2\n" in script
        assert [("afterok:42" in call) for call in (tmp_path / "calls").read_text().splitlines()] == [False, True]


def test_without_datatrove_there_is_one_clear_error() -> None:
    script = "import sys; sys.modules['datatrove'] = None; import lmtrain.data.prepare; "
    script += "import lmtrain.data.writing.datatrove"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (
        "ImportError: lmtrain.data.writing.datatrove: needs the `datatrove` package; pip install 'lmtrain[datatrove]'"
        in (done.stderr.splitlines())
    )


def test_a_link_instead_of_the_hidden_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / ".ranks-out").symlink_to("mine")
    with pytest.raises(ValueError, match=r"/\.ranks-out: a link"):
        finish_token_folder(tmp_path / "out")
