"""Tests of real processes whose standard streams are closed, unread or limited to a small character set."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import clean_environment
from support.tokens import TINY

SHORT = [*TINY, "trainer.max_steps=1", "trainer.eval_batches=1"]


def in_shell(command: str, folder: Path, **environment: str) -> "subprocess.CompletedProcess[bytes]":
    """Run a line of bash in which `lmtrain` is the command; a pipe returns the exit code of the part that fails."""
    script = f'set -o pipefail; lmtrain() {{ "{sys.executable}" -m lmtrain "$@"; }}; {command}'
    variables = clean_environment() | environment
    return subprocess.run(["bash", "-c", script], cwd=folder, env=variables, capture_output=True, check=False)


PRINTS = """
import contextlib, os, sys
from lmtrain.terminal.streams import outlive_reader, prepare_streams
prepare_streams()
with open("first.txt", "w") as file, contextlib.suppress(OSError):
    os.write(2, b"for nobody")
outlive_reader()
for stream in (sys.stdout, sys.stderr):
    for _ in range(3):
        print("é\\udcff" * 10000, file=stream, flush=True)
sys.exit(5)
"""


@pytest.mark.parametrize("redirection", [">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>/dev/full", "| head -c 1", ""])
def test_no_stream_stops_a_process_or_spoils_its_files(tmp_path: Path, redirection: str) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    # The exit code of the shell is that of the last failing part of the pipe.
    done = in_shell(f"{sys.executable} prints.py {redirection}", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 5
    assert b"Traceback" not in done.stderr
    assert (tmp_path / "first.txt").read_text() == ""
    if not redirection:
        assert done.stdout == (b"??" * 10000 + b"\n") * 3


@pytest.mark.slow
def test_a_run_completes_with_any_kind_of_output(tmp_path: Path, token_folder: Path) -> None:
    words = " ".join([*SHORT, f"data.path={token_folder}"])
    for name, redirection in (("closed", ">&-"), ("unread", "| head -1")):
        done = in_shell(f"lmtrain {words} hydra.run.dir={name} {redirection}", tmp_path, PYTHONIOENCODING="ascii")
        assert done.returncode == 0, done.stderr
        assert json.loads((tmp_path / name / "result.json").read_text())["status"] == "completed"


@pytest.mark.slow
def test_preparing_needs_no_output(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("It was the best of times – it was the worst of times. " * 100, encoding="utf-8")
    words = "prepare data=text prepare.source.files=book.txt prepare.tokenizer.vocab_size=300 data.path=tokens"
    assert in_shell(f"lmtrain {words} >&-", tmp_path).returncode == 0
    assert (tmp_path / "tokens" / "meta.json").is_file()
    done = in_shell(f"lmtrain {words}", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert b"is up to date" in done.stdout
