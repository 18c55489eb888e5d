"""Tests with real faults: a run loses nothing and reports what happened."""

import json
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from support.checkpoints import flip_a_bit, garbage, truncate, zero_the_end
from support.command_line import Cli, wait_for_line
from support.tiny_trainer import assert_same_bits, make_trainer, timeless_metrics, tiny_llama, weights
from support.tokens import TINY, write_tokens

from lmtrain.checkpoint.files import MANIFEST, verify_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.errors import BrokenCheckpointError
from lmtrain.loop.stop_request import StopRequest
from lmtrain.trainer import Trainer

EVERY = {"max_steps": 9, "checkpoint_interval": 2, "eval_interval": 3}


def trainer(folder: Path, out: Path, **changes: Any) -> Trainer:
    return make_trainer(folder, out, model=tiny_llama(dropout=0.2), **{**EVERY, **changes})


def assert_same_run(never: Trainer, run: Trainer, out: Path, other: Path) -> None:
    assert run.state.step == never.state.step
    assert_same_bits(weights(never), weights(run))
    assert timeless_metrics(out) == timeless_metrics(other)


@pytest.fixture
def never(token_folder: Path, tmp_path: Path) -> Trainer:
    """Return an undisturbed run in the folder `never`."""
    made = trainer(token_folder, tmp_path / "never")
    made.fit()
    return made


@contextmanager
def mounted(path: Path, options: str) -> Iterator[Path]:
    path.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"may not mount a tmpfs here: {done.stderr.strip()}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


def bytes_below(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


@pytest.mark.slow
def test_a_disk_that_fills_up_at_any_moment_loses_nothing(token_folder: Path, tmp_path: Path, never: Trainer) -> None:
    one = bytes_below(never.saver.folder.at(9))
    stopped_at = set()
    with mounted(tmp_path / "disk", "size=16m") as disk:
        for number in range(12):
            out = disk / str(number)
            out.mkdir()
            # There is room for nothing, for a part of the first checkpoint, …, for all but a part of the second.
            room = int(one * 2 * number / 12)
            filler = disk / "filler"
            with filler.open("wb") as file:
                file.truncate(0)
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - room)
            made = trainer(token_folder, out, keep_checkpoints=1)
            # The check beforehand finds nothing, as when another process writes at the same time.
            made.saver.folder._check_space = lambda checkpoint: None  # type: ignore[method-assign]
            with pytest.raises(Exception, match=r"No space left|no space|os error 28"):
                made.fit()
            made.logger.close("failed")
            stopped_at.add(made.state.step)
            for step in made.saver.folder.steps():
                verify_checkpoint(made.saver.folder.at(step))
            filler.unlink()
            resumed = trainer(token_folder, out, keep_checkpoints=1)
            resumed.fit()
            assert_same_run(never, resumed, out, tmp_path / "never")
            shutil.rmtree(out)
    assert len(stopped_at) >= 2


@pytest.mark.parametrize("limit", [0, 300, 5_000, 60_000])
def test_a_file_that_may_not_grow_loses_nothing(token_folder: Path, tmp_path: Path, never: Trainer, limit: int) -> None:
    out = tmp_path / "out"
    made = trainer(token_folder, out)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        with pytest.raises(Exception, match=r"File too large|no space for a whole line|os error 27"):
            made.fit()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert made.state.step < 9
    assert not list((out / "checkpoints").glob(".tmp-*"))
    resumed = trainer(token_folder, out)
    resumed.fit()
    assert_same_run(never, resumed, out, tmp_path / "never")


@pytest.mark.slow
def test_a_full_disk_is_reported_in_a_line_and_the_run_can_be_resumed_when_there_is_room(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    command = [*TINY, f"data.path={token_folder}", "hydra.run.dir=disk/out", "trainer.checkpoint_interval=1"]
    with mounted(tmp_path / "disk", "size=1m") as disk:
        full = cli(*command, "trainer.keep_checkpoints=20")
        assert full.returncode == 1
        assert "failed: " in full.stdout
        assert "a checkpoint needs" in full.stdout
        assert "continue from step" in full.stdout
        assert "Traceback" not in full.stdout + full.stderr
        done = subprocess.run(["mount", "-o", "remount,size=16m", str(disk)], check=False)
        assert done.returncode == 0
        assert cli("resume=disk/out").returncode == 0
        assert json.loads((disk / "out" / "result.json").read_text())["steps"] == 12


def test_a_place_that_cannot_be_written_is_a_config_error(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    with mounted(tmp_path / "disk", "ro"):
        done = cli(*TINY, f"data.path={token_folder}", "hydra.run.dir=disk/out")
    assert done.returncode == 2
    assert done.stderr.startswith("config error: ")
    assert "Read-only file system" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_checkpoints_that_can_no_longer_be_written_stop_the_run(
    token_folder: Path, tmp_path: Path, never: Trainer
) -> None:
    out = tmp_path / "out"
    made = trainer(token_folder, out)
    one_step = made.step
    with mounted(tmp_path / "elsewhere", "size=1m,ro") as read_only:

        def step() -> Any:
            if made.state.step == 5:
                made.saver.wait()
                bound = subprocess.run(["mount", "--bind", str(read_only), str(out / "checkpoints")], check=False)
                assert bound.returncode == 0
            return one_step()

        made.step = step  # type: ignore[method-assign]
        try:
            with pytest.raises(OSError, match="Read-only file system"):
                made.fit()
        finally:
            subprocess.run(["umount", "-l", str(out / "checkpoints")], check=True)
    assert made.state.step in (6, 7, 8)  # it stops at the step after the save that failed
    resumed = trainer(token_folder, out)
    assert resumed.state.step == 4
    resumed.fit()
    assert_same_run(never, resumed, out, tmp_path / "never")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("model.safetensors", truncate),
        ("optimizer.safetensors", zero_the_end),
        ("rng-0.safetensors", flip_a_bit),
        ("detector.safetensors", Path.unlink),
        ("state.json", flip_a_bit),
        (MANIFEST, garbage),
        (MANIFEST, Path.unlink),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_and_the_run_continues_from_an_earlier_one(
    token_folder: Path,
    tmp_path: Path,
    never: Trainer,
    caplog: pytest.LogCaptureFixture,
    file: str,
    damage: Callable[[Path], None],
) -> None:
    out = tmp_path / "out"
    trainer(token_folder, out, max_steps=7).fit()
    newest = CheckpointFolder(out / "checkpoints").at(7)
    damage(newest / file)
    with pytest.raises(BrokenCheckpointError):
        verify_checkpoint(newest)
    resumed = trainer(token_folder, out)
    assert resumed.state.step == 6
    assert "step-00000007 is broken" in caplog.text
    resumed.fit()
    assert (out / "checkpoints" / "broken-step-00000007-0").is_dir()
    assert_same_run(never, resumed, out, tmp_path / "never")


def test_a_signal_does_not_hide_that_the_last_save_failed(token_folder: Path, tmp_path: Path) -> None:
    with StopRequest() as stop:
        made = trainer(token_folder, tmp_path / "out", stop=stop, log_interval=100)
        one_step = made.step

        def step() -> Any:
            if made.state.step == 4:
                made.saver.wait()
                resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, hard))
                os.kill(os.getpid(), signal.SIGTERM)
            return one_step()

        made.step = step  # type: ignore[method-assign]
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            with pytest.raises(Exception, match=r"File too large|os error 27"):
                made.fit()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert made.saver.folder.steps()[-1] == 4


SLOW_LOGGER = """
import time

class Slow:
    def __init__(self, run):
        pass

    def log(self, step, metrics):
        pass

    def close(self, status):
        print("closing", status, flush=True)
        time.sleep(300)
"""


@pytest.mark.slow
def test_a_signal_while_the_loggers_close_does_not_change_how_the_run_ended(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    (tmp_path / "mylog.py").write_text(SLOW_LOGGER)
    (tmp_path / "conf" / "logger").mkdir(parents=True)
    (tmp_path / "conf" / "logger" / "slow.yaml").write_text("# @package logger.slow\n_target_: mylog.Slow\n")
    process = cli.start(*TINY, f"data.path={token_folder}", "hydra.run.dir=out", "logger=slow")
    wait_for_line("closing completed", process)
    assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "completed"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0
    assert "stopped by SIGTERM, after the run had ended: completed" in process.stdout
    assert "everything is in out" in process.stdout


@pytest.mark.slow
@pytest.mark.parametrize("happens", ["SIGINT", "SIGHUP", "an error"])
def test_a_failure_of_the_final_sample_does_not_change_how_the_run_ended(
    tmp_path: Path, cli: Cli, happens: str
) -> None:
    (tmp_path / "book.txt").write_text("It was the best of times, it was the worst of times. " * 400)
    text = ["data=text", "prepare.source.files=book.txt", "prepare.tokenizer.vocab_size=300", "data.path=tokens"]
    tiny = [each for each in TINY if each not in ("data=tokens", "sample_tokens=0")]
    process = cli.start(*text, *tiny, "hydra.run.dir=out", "trainer.max_steps=4", "sample_tokens=10000000")
    result = tmp_path / "out" / "result.json"
    if happens == "an error":
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "sample.txt").mkdir()
        process.end()
        process = cli.start(*text, *tiny, "hydra.run.dir=out", "trainer.max_steps=4", "sample_tokens=3")
    else:
        deadline = time.monotonic() + 60
        while not result.exists():
            assert time.monotonic() < deadline, process.stdout
            time.sleep(0.02)
        process.send_signal(getattr(signal, happens))
    assert process.wait(60) == 0, process.stdout
    assert json.loads(result.read_text())["status"] == "completed"
    assert ", after the run had ended: completed" in process.stdout
    assert "final loss: " in process.stdout


@pytest.mark.slow
def test_a_resume_that_cannot_start_does_not_change_the_run(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    shutil.move(token_folder, tmp_path / "moved")
    assert cli(*TINY, "data.path=moved", "hydra.run.dir=out", "trainer.max_steps=4").returncode == 0
    kept = ("result.json", "metrics.jsonl", "config.yaml", ".hydra/config.yaml", "environment.json")
    before = {name: (tmp_path / "out" / name).read_bytes() for name in kept}
    other = write_tokens(tmp_path / "other", train=5000)
    for change, message in (
        (["system.device=cuda:7", "allow_changes=system.device"], "system.device=cuda:7: this machine has"),
        ([f"data.path={other}"], "not the data that this run was trained on"),
        (["data.path=nowhere"], "data.path=nowhere: no such folder"),
        (["model.n_layer=3", "allow_changes=model"], "the checkpoint does not fit the model"),
    ):
        done = cli("resume=out", "trainer.max_steps=8", *change)
        assert done.returncode == 2, done.stdout + done.stderr
        assert message in done.stderr
        assert {name: (tmp_path / "out" / name).read_bytes() for name in kept} == before


@pytest.mark.slow
def test_a_resumed_run_does_not_prepare_its_data_again(tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "book.txt").write_text("It was the best of times, it was the worst of times. " * 400)
    text = ["data=text", "prepare.source.files=book.txt", "prepare.tokenizer.vocab_size=300", "data.path=tokens"]
    tiny = [each for each in TINY if each != "data=tokens"]
    assert cli(*text, *tiny, "hydra.run.dir=out", "trainer.max_steps=4").returncode == 0
    shutil.move(tmp_path / "tokens", tmp_path / "elsewhere")
    done = cli("resume=out", "trainer.max_steps=6")
    assert done.returncode == 2
    assert "data.path=tokens: no such folder" in done.stderr
    assert not (tmp_path / "tokens").exists()
    done = cli("resume=out", "trainer.max_steps=6", "data.path=elsewhere")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_stale_lock_is_taken_over_and_a_live_one_is_not(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    tiny = [*TINY, f"data.path={token_folder}"]
    process = cli.start(*tiny, "trainer.max_steps=100000", "hydra.run.dir=out")
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out" / "checkpoints").glob("step-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # A process that is stopped, as by a debugger, still owns the folder.
    process.send_signal(signal.SIGSTOP)
    refused = cli("resume=out")
    assert refused.returncode == 2
    assert f"in use by process {process.pid} on " in refused.stderr
    process.kill()
    assert f"process {process.pid}" in (tmp_path / "out" / ".lock").read_text()
    done = cli(
        "resume=out", "trainer.max_steps=20" if newest(tmp_path) < 20 else f"trainer.max_steps={newest(tmp_path)}"
    )
    assert done.returncode == 0, done.stdout + done.stderr


def newest(tmp_path: Path) -> int:
    return CheckpointFolder(tmp_path / "out" / "checkpoints").steps()[-1]


BACKWARDS = """
import time
real, calls = time.time, 0

def time_that_goes_back():
    global calls
    calls += 1
    return real() - 3600 * calls

time.time = time_that_goes_back
"""


@pytest.mark.slow
def test_a_clock_that_goes_backwards_harms_nothing(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BACKWARDS)
    odd = {"PYTHONPATH": str(tmp_path / "site")}
    tiny = [*TINY, f"data.path={token_folder}", "hydra.run.dir=out"]
    assert cli(*tiny, "trainer.max_steps=6").returncode == 0
    # By this clock, it was written in the future.
    for path in (tmp_path / "out").rglob("*"):
        os.utime(path, (2**32, 2**32), follow_symlinks=False)
    done = cli("resume=out", "trainer.max_steps=12", **odd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "resumed after step 6" in done.stdout
    lines = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert all(line["step_time_ms"] > 0 for line in lines)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["status"], result["steps"]) == ("completed", 12)
    assert 0 < result["seconds"] < 60


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_data_file_that_was_replaced_is_named(
    token_folder: Path, tmp_path: Path, split: str, caplog: pytest.LogCaptureFixture
) -> None:
    trainer(token_folder, tmp_path / "out", max_steps=4).fit()
    file = token_folder / f"{split}.bin"
    content = file.read_bytes()
    os.utime(file)  # touched, not changed
    trainer(token_folder, tmp_path / "out", max_steps=5).fit()
    file.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    with pytest.raises(ValueError, match=rf"not the data that this run was trained on: .*{split}\.bin"):
        trainer(token_folder, tmp_path / "out")
    file.write_bytes(content)
    trainer(token_folder, tmp_path / "out", max_steps=6).fit()
    times = file.stat()
    file.write_bytes(content[:-2] + bytes([content[-2] ^ 1, content[-1]]))
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # like a copy that preserves times
    with pytest.raises(ValueError, match=rf"not the data that this run was trained on: .*{split}\.bin"):
        trainer(token_folder, tmp_path / "out")
    # Without a meta.json, only a part can be compared, which is reported.
    for name in ("meta.json", "train.bin", "val.bin"):
        (token_folder / name).rename(tmp_path / name)
    bare = write_tokens(tmp_path / "bare")
    (bare / "meta.json").unlink()
    trainer(bare, tmp_path / "other", max_steps=4).fit()
    os.utime(bare / f"{split}.bin")
    trainer(bare, tmp_path / "other", max_steps=4)
    assert f"the files of {split} were changed or moved since the checkpoint" in caplog.text
    torch.manual_seed(0)


def test_a_data_file_replaced_during_the_run_is_named_when_it_is_resumed(token_folder: Path, tmp_path: Path) -> None:
    made = trainer(token_folder, tmp_path / "out", max_steps=4)
    file = token_folder / "train.bin"
    content = file.read_bytes()
    made.step = replacing(made.step, file, content[:-2] + bytes([content[-2] ^ 1, content[-1]]))  # type: ignore[method-assign]
    made.fit()
    with pytest.raises(ValueError, match=r"not the data that this run was trained on: .*train\.bin"):
        trainer(token_folder, tmp_path / "out")


def replacing(step: Callable[[], Any], file: Path, other: bytes) -> Callable[[], Any]:
    """Return a step function that replaces the file after the step, as another program might."""

    def replaced() -> Any:
        done = step()
        (file.parent / "new").write_bytes(other)
        os.replace(file.parent / "new", file)
        return done

    return replaced
