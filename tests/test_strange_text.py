"""Tests that untrusted text in a path, a token or a file neither controls the terminal nor stops a command."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.command_line import Cli, clean_environment
from support.synthetic_runs import write_run
from support.tokens import TINY, VOCAB_SIZE, write_tokens
from tokenizers import Tokenizer, models

from lmtrain.__main__ import print_traceback
from lmtrain.data.stored_tokenizer import StoredTokenizer, save_tokenizer

# For rich, this is markup that is closed but never opened, and an emoji; for a terminal, a color and a new title.
NAME = "[/x] :smile: \x1b[31m\x1b]0;title\x07"
SHOWN = "[/x] :smile: \\x1b[31m\\x1b]0;title\\x07"

pytestmark = pytest.mark.slow


def write_hostile_tokens(folder: Path) -> None:
    """Write token files in which the text of every token is such a name."""
    write_tokens(folder)
    vocabulary = {f"{NAME}{number}": number for number in range(VOCAB_SIZE)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=f"{NAME}0"))
    save_tokenizer(folder, StoredTokenizer(tokenizer, None))


def test_every_command_shows_strange_text_literally(tmp_path: Path, cli: Cli) -> None:
    write_hostile_tokens(tmp_path / NAME)
    (tmp_path / f"{NAME}.txt").write_text(f"{NAME} text\n" * 2000)
    written: dict[str, str] = {}

    def run(name: str, *arguments: str, code: int = 0) -> str:
        done = cli(*arguments)
        written[name] = done.stdout + done.stderr
        assert done.returncode == code, written[name]
        return written[name]

    data = f"data.path='{NAME}'"
    training = [text for text in TINY if not text.startswith(("sample_tokens", "trainer.max_steps"))]
    run("train", *training, data, "trainer.max_steps=4", "sample_tokens=20", "hydra.run.dir=out")
    run_dir = tmp_path / f"out {NAME}"
    run_dir.parent.mkdir()
    (tmp_path / "out").rename(run_dir)
    written["log"] = (run_dir / "train.log").read_text(encoding="utf-8")
    written["sample.txt"] = (run_dir / "sample.txt").read_text(encoding="utf-8")
    run("sample", "sample", f"out {NAME}", "--tokens", "20", "--count", "2")
    run("evaluate", "evaluate", f"out {NAME}", "--data", NAME)
    run("inspect", "inspect", NAME)
    run("compare", "compare", f"out {NAME}", "--columns", "run,path,label,data.path")
    text = [f"prepare.source.files='{NAME}.txt'", "prepare.tokenizer.vocab_size=300"]
    run("prepare", "prepare", "data=text", *text, f"data.path='prepared {NAME}'")
    run("prepared before", "prepare", "data=text", *text, f"data.path='prepared {NAME}'")
    run("mistake", "evaluate", f"nothing {NAME}", code=2)
    run("another", "prepare", "data=text", *text, f"data.path='{NAME}'", code=2)
    for name, text_of in written.items():
        assert re.sub(r"[\n\t]", "", text_of).isprintable(), f"{name}: {text_of!r}"
        assert "Traceback" not in text_of, f"{name}: {text_of}"
        assert "[31m" in text_of, f"{name}: {text_of}"
    assert SHOWN in written["sample"]
    assert SHOWN in written["train"]


def test_an_unexpected_error_is_shown_literally(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise RuntimeError(NAME)
    except RuntimeError as error:
        print_traceback(type(error), error, error.__traceback__)
    shown = capsys.readouterr().err
    assert shown.startswith("Traceback")
    assert shown.endswith(f"RuntimeError: {SHOWN}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["evaluate", "--help"],
        ["compare", "runs", "--csv", "-"],
        ["inspect", "data"],
        ["prepare", "data=text", "prepare.source.files=a.txt", "prepare.tokenizer.vocab_size=300", "data.path=made"],
        ["--cfg", "job", *TINY, "data.path=data"],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_a_command_whose_reader_is_gone_stops_quietly(tmp_path: Path, arguments: list[str]) -> None:
    write_tokens(tmp_path / "data")
    (tmp_path / "a.txt").write_text("some text\n" * 1000)
    write_run(tmp_path / "runs" / "a", steps=50)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "lmtrain", *arguments]
    done = subprocess.run(
        command, cwd=tmp_path, env=clean_environment(), stdout=write, stderr=subprocess.PIPE, text=True, check=False
    )
    os.close(write)
    assert done.stderr == ""
    assert done.returncode in (0, 1)
