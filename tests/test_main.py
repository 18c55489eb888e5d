"""Tests of the command line with bad surroundings: wrong variables, missing folders and unreadable files."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.command_line import Cli
from support.permissions import modes_that_hold
from support.tokens import TINY, write_tokens

from lmtrain.__main__ import dispatch, dispatch_and_report_errors
from lmtrain.errors import ConfigError


@contextlib.contextmanager
def in_folder(folder: Path) -> Iterator[None]:
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("WORLD_SIZE", "two", "WORLD_SIZE=two: this environment variable must be a whole number; unset it"),
        ("WORLD_SIZE", "2", "RANK: is not set, but WORLD_SIZE is; start the processes with torchrun"),
        ("WORLD_SIZE", "", "data.path=nowhere: no such folder"),
        ("LMTRAIN_PARENT", "abc", "LMTRAIN_PARENT=abc: this environment variable must be a whole number; unset it"),
        ("LMTRAIN_PARENT", "", "data.path=nowhere: no such folder"),
    ],
)
def test_an_environment_variable_that_is_not_a_number_is_named(
    name: str,
    value: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(name, value)
    assert dispatch_and_report_errors(["data=tokens", "data.path=nowhere"]) == 2
    assert capsys.readouterr().err.startswith(f"config error: {message}")


def test_an_argument_that_is_not_utf_8_is_named() -> None:
    with pytest.raises(ConfigError, match=r"data\.path=.*: is not UTF-8"):
        dispatch(["data=tokens", "data.path='caf\udce9'"])


def test_a_folder_that_was_removed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gone").mkdir()
    with in_folder(tmp_path / "gone"):
        (tmp_path / "gone").rmdir()
        assert dispatch_and_report_errors(["--help"]) == 2
    assert capsys.readouterr().err == (
        "config error: the current folder was removed or replaced; change to an existing folder\n"
    )


def test_a_folder_with_the_name_of_a_library_does_not_shadow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_tokens(tmp_path / "tokens")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("lmtrain.config.preflight.EXTRAS", {"lmtrain.logger.csv.CsvLogger": "not_installed"})
    (tmp_path / "not_installed").mkdir()
    tiny = [text for text in TINY if text != "logger=[]"]
    assert dispatch_and_report_errors([*tiny, "data.path=tokens", "logger=csv"]) == 2
    assert "logger=csv: needs the package not_installed" in capsys.readouterr().err


@pytest.mark.slow
def test_an_unreadable_file_is_reported_in_one_line(
    tmp_path: Path, cli: Cli, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "book.txt").write_text("It was the best of times, it was the worst of times. " * 400)
    text = ["data=text", "prepare.source.files=book.txt", "prepare.tokenizer.vocab_size=300", "data.path=tokens"]
    tiny = [each for each in TINY if each != "data=tokens"]
    assert cli(*text, *tiny, "hydra.run.dir=out", "trainer.max_steps=1").returncode == 0
    monkeypatch.chdir(tmp_path)
    run, checkpoint = Path("out"), Path("out/checkpoints/step-00000001")
    evaluate, sample, resume = ["evaluate", "out"], ["sample", "out", "--tokens", "1"], ["resume=out"]
    compare, inspect = ["compare", "out"], ["inspect", "tokens"]
    for path, commands in (
        (run, [evaluate, sample, compare, resume]),
        (run / "config.yaml", [evaluate, resume]),
        (run / "metrics.jsonl", [compare]),
        (run / "environment.json", [resume]),
        (checkpoint / "model.safetensors", [evaluate, sample, resume]),
        (Path("tokens"), [evaluate, inspect, resume]),
        (Path("tokens/train.bin"), [inspect, resume]),
    ):
        before = path.stat().st_mode & 0o777
        path.chmod(0)
        try:
            for command in commands:
                with modes_that_hold():
                    assert dispatch_and_report_errors(command) == 2, (path, command)
                shown = capsys.readouterr()
                assert "Traceback" not in shown.err + shown.out
                assert path.name in shown.err + shown.out, (path, command)
        finally:
            path.chmod(before)
    for command in (evaluate, sample, compare, inspect):
        assert dispatch_and_report_errors(command) == 0, command


@pytest.mark.parametrize(
    ("first", "way_out"),
    [
        ("train", "training needs no verb: python -m lmtrain [overrides]"),
        ("trian", "training needs no verb: python -m lmtrain [overrides]"),
        ("compar", "did you mean compare?"),
    ],
)
def test_a_first_word_that_is_no_verb_gets_a_way_out(first: str, way_out: str) -> None:
    with pytest.raises(ConfigError, match=first) as caught:
        dispatch([first, "seed=1"])
    assert str(caught.value).endswith(f"; {way_out}")


CHILD = """
import os, sys, time
from pathlib import Path
from lmtrain.__main__ import stop_with_parent
from lmtrain.loop.stop_request import StopRequest
parent = os.getppid()
stop_with_parent(parent)
with StopRequest() as stop:
    stop.defers = True
    print("ready", flush=True)
    while stop.signal is None or os.getppid() == parent:
        time.sleep(0.01)
    time.sleep(0.1)
    Path(sys.argv[1]).write_text(str(int(stop.signal)))
"""
PARENT = """
import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], stdout=subprocess.PIPE)
child.stdout.readline()
if sys.argv[3] == "asks":
    child.terminate()
    time.sleep(0.6)
os._exit(0)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
@pytest.mark.parametrize(("how", "first"), [("asks", signal.SIGTERM), ("dies", signal.SIGHUP)])
def test_a_job_saves_when_its_parent_dies_also_if_the_parent_had_asked_it_to_stop(
    how: str, first: signal.Signals, tmp_path: Path
) -> None:
    saved = tmp_path / "saved"
    subprocess.run([sys.executable, "-c", PARENT, CHILD, str(saved), how], check=True, timeout=60)
    deadline = time.monotonic() + 30
    while not saved.exists() or not saved.read_text():
        assert time.monotonic() < deadline, "the job ended without saving"
        time.sleep(0.01)
    assert saved.read_text() == str(int(first))
