"""Tests of `sample` with the run's own tokenizer, with a given one, and without any."""

import contextlib
import json
import pickle
import re
import sys
from pathlib import Path

import pytest
from support.command_line import Cli
from support.terminal import Terminal
from support.tokens import TINY, write_tokens
from tokenizers import Tokenizer, models

from lmtrain.commands.sample import ASKING, main
from lmtrain.data.tokenizer import tokenizer_of_characters
from lmtrain.errors import ConfigError

CHARACTERS = (
    "\n !.,'ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"  # fewer than the vocabulary has, as in many runs
)
IDS = {character: number for number, character in enumerate(CHARACTERS)}
OPTIONS = ["--prompt", "Hi", "--tokens", "5", "--device", "cpu"]


@pytest.fixture(scope="module")
def folder(module_cli: Cli) -> Path:
    """Return a folder with a run that has no tokenizer because its data has none."""
    folder = module_cli.folder
    write_tokens(folder / "data")
    done = module_cli(*TINY, "data.path=data", "trainer.max_steps=1", "hydra.run.dir=out")
    assert done.returncode == 0, done.stderr
    (folder / "characters").mkdir()
    (folder / "characters" / "meta.pkl").write_bytes(pickle.dumps({"stoi": IDS}))
    (folder / "tokenizer").mkdir()
    tokenizer_of_characters(IDS).tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    (folder / "tokenizer" / "other.json").write_bytes((folder / "tokenizer" / "tokenizer.json").read_bytes())
    Tokenizer(models.WordLevel({chr(100 + number): number for number in range(62)})).save(str(folder / "large.json"))
    (folder / "hint.txt").write_text(done.stdout)
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


def test_a_run_without_a_tokenizer_suggests_no_sample(folder: Path) -> None:
    closing = (folder / "hint.txt").read_text().partition("next: ")[2].splitlines()
    assert [re.sub(" {2,}", "", line) for line in closing] == [
        "python -m lmtrain evaluate out",
        "python -m lmtrain resume=out trainer.max_steps=2",
    ]


def test_a_tokenizer_can_be_given_in_any_form(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for path in ("characters", "characters/meta.pkl", "tokenizer", "tokenizer/tokenizer.json", "tokenizer/other.json"):
        assert main(["out", *OPTIONS, "--tokenizer", path]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0].startswith("Hi")
    assert len(texts[0]) == len("Hi") + 5 + len("\n")
    assert set(texts) == {texts[0]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "out: has no tokenizer.json, because its data had none; give one with --tokenizer PATH"),
        (["--tokenizer", "nowhere"], "--tokenizer nowhere: no such file or folder"),
        (["--tokenizer", "data"], "--tokenizer data: the folder has no tokenizer.json and no meta.pkl"),
        (["--tokenizer", "data/train.bin"], "data/train.bin: not a file that the tokenizers library reads"),
        (["--tokenizer", "large.json"], "--tokenizer large.json: has 62 ids, but the model of out has only 61; give"),
        (["--tokenizer", "tokenizer", "--prompt", "Hi?"], "the tokenizer does not know '?'"),
    ],
)
def test_mistakes_are_one_line(here: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(["out", *OPTIONS, *arguments])
    assert str(caught.value).startswith(message)
    assert len(str(caught.value).splitlines()) == 1


def test_a_run_with_its_own_tokenizer_accepts_no_other(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    own = here / "out" / "tokenizer.json"
    own.write_bytes((here / "tokenizer" / "tokenizer.json").read_bytes())
    try:
        assert main(["out", *OPTIONS]) == 0
        assert capsys.readouterr().out.startswith("Hi")
        with pytest.raises(ConfigError, match=r"^--tokenizer characters: out has its own \(tokenizer.json\)"):
            main(["out", *OPTIONS, "--tokenizer", "characters"])
    finally:
        own.unlink()


def test_options_of_the_choice_and_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["out", "--tokenizer", "characters", "--device", "cpu", "--tokens", "30"]
    (here / "prompts.txt").write_text("Hello\nWho is it\n")
    choice = ["--top-p", "0.9", "--min-p", "0.01", "--repetition-penalty", "1.1"]
    texts = []
    for more in ([], ["--no-cache"], ["--batch-size", "1"]):
        assert (
            main([*given, "--prompt", "Hi", "--prompts", "prompts.txt", "--count", "2", "--json", *choice, *more]) == 0
        )
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] == texts[2]
    found = [json.loads(line) for line in texts[0].splitlines()]
    assert [(each["prompt"], each["number"]) for each in found] == [
        (prompt, number) for prompt in ("Hi", "Hello", "Who is it") for number in (0, 1)
    ]
    assert all(each["text"] == "".join(each["tokens"]) and each["finish_reason"] == "length" for each in found)
    assert main([*given, "--prompt", "Hello", *choice]) == 0  # streamed, alone
    assert capsys.readouterr().out == f"Hello{found[2]['text']}\n"


def test_a_text_ends_before_a_stop_text(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["out", "--tokenizer", "characters", "--device", "cpu", "--tokens", "30", "--prompt", "Hi"]
    assert main([*given, "--json", "--logprobs", "2"]) == 0
    whole = json.loads(capsys.readouterr().out)
    for token, found in zip(whole["ids"], whole["logprobs"], strict=True):
        assert str(token) in found
        assert max(found.values()) <= 0
    stop = whole["text"][7:10]
    before = whole["text"].partition(stop)[0]
    assert main([*given, "--json", "--stop", stop]) == 0
    cut = json.loads(capsys.readouterr().out)
    assert (cut["text"], cut["finish_reason"]) == (before, "stop")
    assert main([*given, "--stop", stop]) == 0
    assert capsys.readouterr().out == f"Hi{before}\n"


def test_prompts_may_be_in_json_lines(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["out", "--tokenizer", "characters", "--device", "cpu", "--tokens", "3", "--json", "--prompts"]
    prompts = ["Hello", "Two\nlines", ""]
    (here / "prompts.jsonl").write_text("".join(json.dumps({"prompt": each, "n": 1}) + "\n" for each in prompts))
    assert main([*given, "prompts.jsonl"]) == 0
    assert [json.loads(line)["prompt"] for line in capsys.readouterr().out.splitlines()] == prompts
    for line, message in (
        ("Hello", "not JSON"),
        ('{"text": "Hi"}', 'no text under "prompt"'),
        ("[1]", "no text under"),
    ):
        (here / "wrong.jsonl").write_text(json.dumps({"prompt": "Hi"}) + "\n\n" + line + "\n")
        with pytest.raises(ConfigError, match=f"^--prompts wrong.jsonl, line 3: {message}"):
            main([*given, "wrong.jsonl"])


def test_interactive_takes_no_prompts_of_options(here: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--interactive: asks for prompts and .*; leave out --json"):
        main(["out", "--interactive", "--json"])
    with pytest.raises(ConfigError, match=r"leave out --count, --logprobs$"):
        main(["out", "--interactive", "--count", "2", "--logprobs", "0"])


def test_log_probabilities_are_part_of_the_json(here: Path) -> None:
    with pytest.raises(ConfigError, match="--logprobs: are part of the JSON output; give --json, too"):
        main(["out", "--logprobs", "3"])


@pytest.mark.slow
def test_interactive_asks_until_the_input_ends(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    given = ["out", "--tokenizer", "characters", "--device", "cpu"]
    wanted = []
    for seed in ("3", "4"):
        main([*given, "--prompt", "Hi", "--tokens", "20", "--seed", seed])
        wanted.append(capfd.readouterr().out)
    command = [sys.executable, "-m", "lmtrain", "sample", *given, "--interactive", "--seed", "3"]
    with Terminal([*command, "--tokens", "20"], here) as terminal:
        for text in wanted:
            terminal.wait_for(ASKING)
            terminal.type("Hi\n")
            assert text in terminal.wait_for(text)
        terminal.wait_for(ASKING)
        terminal.type("?\n")  # a character that the tokenizer does not know
        terminal.wait_for("error: the tokenizer does not know '?'")
        terminal.wait_for(ASKING)
        terminal.type("\x04")  # Ctrl-D
        assert terminal.exit_code() == 0
    with Terminal([*command, "--tokens", "1000000"], here) as terminal:
        terminal.wait_for(ASKING)
        terminal.type("Hi\n")
        terminal.wait_for("Hi\r\nHi")  # what was typed, and the begin of the text
        terminal.type("\x03")  # Ctrl-C
        terminal.wait_for("[stopped]")
        terminal.wait_for(ASKING)
        for _ in range(
            60
        ):  # at the prompt, it only clears the line; readline misses it in the moment it begins to wait
            terminal.type("\x03")
            with contextlib.suppress(TimeoutError):
                terminal.wait_for(ASKING, timeout=2)
                break
        else:
            pytest.fail("Ctrl-C at the prompt does nothing")
        terminal.type("\x04")
        assert terminal.exit_code() == 0
