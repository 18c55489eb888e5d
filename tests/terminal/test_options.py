"""Tests that every verb reports bad values, unknown options and missing arguments in one line."""

from pathlib import Path

import pytest

from lmtrain.__main__ import dispatch, dispatch_and_report_errors
from lmtrain.errors import ConfigError
from lmtrain.terminal.options import MAX_INT64, Number, OptionParser, WholeNumber, output_file


def parser() -> OptionParser:
    made = OptionParser(prog="test")
    made.add_argument("words", nargs="*")
    made.add_argument("-c", "--count", type=WholeNumber(1, 10))
    made.add_argument("--seed", type=WholeNumber())
    made.add_argument("--share", type=Number(above=0, at_most=1))
    made.add_argument("--value", type=Number())
    made.add_argument("--file", type=output_file)
    return made


def test_options_may_be_anywhere_and_negative_numbers_are_values(tmp_path: Path) -> None:
    options = parser().read(["a", "--seed", "1e3", "b", "--value", "-1e-5", "-c", "10", f"--file={tmp_path / 'x'}"])
    assert (options.words, options.seed, options.value, options.count) == (["a", "b"], 1000, -1e-5, 10)
    assert options.file == tmp_path / "x"
    assert parser().read([f"--seed={MAX_INT64}"]).seed == MAX_INT64  # exact, without a detour through float


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "1e20"], "--seed 1e20: must be at least 0 and at most 9223372036854775807"),
        (["--seed", str(MAX_INT64 + 1)], f"--seed {MAX_INT64 + 1}: must be at least 0 and at most 9223372036854775807"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--seed", "1.5"], "--seed 1.5: not a whole number; at least 0"),
        (["--seed", "inf"], "--seed inf: not a whole number; at least 0"),
        (["--seed", "7" * 9999], f"--seed {'7' * 40}: not a whole number; at least 0"),
        (["-c", "11"], "--count 11: must be at least 1 and at most 10"),
        (["--share", "0"], "--share 0: must be above 0 and at most 1"),
        (["--share", "-1e5"], "--share -1e5: must be above 0 and at most 1"),
        (["--share", "nan"], "--share nan: not a finite number; above 0 and at most 1"),
        (["--value", "-inf"], "--value -inf: not a finite number"),
        (["--value"], "--value: expected one argument"),
        (["--frobnicate"], "--frobnicate: no such option; --help lists them"),
        (["a", "--seeds=3"], "--seeds: no such option; did you mean --seed?"),
        (["--file", "."], "--file .: is a folder; give a file"),
        (["--file", "nowhere/x"], "--file nowhere/x: the folder nowhere does not exist; create it first"),
    ],
)
def test_a_mistake_is_one_line(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parser().read(arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sample out --temperature inf", "--temperature inf: not a finite number; at least 0 and at most 1000"),
        ("sample out --seed 1e20", "--seed 1e20: must be at least 0 and at most"),
        ("sample out --tokens 0", "--tokens 0: must be at least 1"),
        ("sample out --top-k -1", "--top-k -1: must be at least 0"),
        ("sample out --max-tokens 9", "--max-tokens: no such option; did you mean --tokens?"),
        ("sample", "the following arguments are required: RUN_DIR"),
        ("sample out another", "another: is one argument too many"),
        ("evaluate out --chekpoint=3", "--chekpoint: no such option; did you mean --checkpoint?"),
        ("verify-resume --kills -1", "--kills -1: must be at least 1"),
        ("plan --price nan", "--price nan: not a finite number; at least 0"),
        ("plan --mfu 35", "--mfu 35: must be above 0 and at most 1"),
        ("inspect data --seed=-1", "--seed -1: must be at least 0"),
        ("compare out --reach nan", "--reach nan: not a finite number"),
        ("compare out --at-step 0", "--at-step 0: must be at least 1"),
        ("import", "the following arguments are required: PATH"),
        ("prepare --forse", "--forse: no such option"),
        ("benchmark loops --rounds 0", "--rounds 0: must be at least 1"),
        ("benchmark loader --tokens 5", "--tokens 5: must be at least 2000"),
        (
            "benchmark checkpoint --json nowhere/x",
            "--json nowhere/x: the folder nowhere does not exist; create it first",
        ),
        ("benchmark prepare --megabytes 1e30", "--megabytes 1e30: must be at least 1 and at most"),
        ("--rerun", "the following arguments are required: RUN_DIR"),
        ("--frobnicate", "--frobnicate: no such option; --help lists them"),
        ("--config-dri=x", "--config-dri: no such option; did you mean --config-dir?"),
    ],
)
def test_every_verb_reports_mistakes_in_its_options(
    arguments: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert dispatch_and_report_errors(arguments.split()) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"config error: {message}")
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert list(tmp_path.iterdir()) == []


def test_help_exits_with_success(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        dispatch(["sample", "--help"])
    assert ended.value.code == 0
    assert "--temperature" in capsys.readouterr().out
