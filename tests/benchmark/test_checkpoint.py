"""`benchmark checkpoint` measures every number on a tiny model and leaves no files behind."""

import json
from pathlib import Path

import pytest
from support.tokens import TINY

from lmtrain.benchmark.checkpoint import FIRST, MEASURED
from lmtrain.commands.benchmark import KINDS, main
from lmtrain.errors import ConfigError

TINY_MODEL = [override for override in TINY if override.split(".")[0].split("=")[0] in ("model", "system")]
UNTOUCHED = ["system.deterministic=false", "system.keep_freed_memory=false"]  # other tests share this process


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_every_round_has_all_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = [*TINY_MODEL, "model.vocab_size=61", *UNTOUCHED]
    assert main(["checkpoint", *overrides, "--rounds", "2", "--json", "numbers.json"]) == 0
    assert [path.name for path in here.iterdir()] == ["numbers.json"]
    numbers = json.loads(Path("numbers.json").read_text(encoding="utf-8"))
    assert numbers["first_stalls"].keys() == FIRST.keys()
    assert [seconds.keys() for seconds in numbers["seconds"]] == [MEASURED.keys()] * 2
    for seconds in numbers["seconds"]:
        assert all(value > 0 for value in seconds.values())
    # On a busy machine the background may end before the call returns, but not in every round.
    stalls, backgrounds = ([seconds[name] for seconds in numbers["seconds"]] for name in ("stall", "background"))
    assert min(stalls) < max(backgrounds)
    parameters = 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 61 * 32 + 32
    # The weights and two moments, a counter per tensor, and the random generators.
    assert 12 * parameters < numbers["bytes"] < 12 * parameters + 20_000
    printed = capsys.readouterr().out
    assert all(name in printed for name in {**FIRST, **MEASURED})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "--rounds"),
        (["model.vocab_size=null"], "model.vocab_size=null"),
        (["optimizer.lr=-1"], "optimizer.lr"),
        (["system.device=cuda:99"], "system.device"),
    ],
)
def test_a_mistake_is_a_config_error_and_leaves_no_files(here: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        main(["checkpoint", *UNTOUCHED, *arguments])
    assert list(here.iterdir()) == []


def test_an_unknown_kind_of_benchmark_is_named_with_the_known_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=rf"^benchmark foo: no such kind; choose one of {', '.join(KINDS)}$",
    ):
        main(["foo"])
