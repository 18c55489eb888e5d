"""`benchmark` measures a real run through the command line, and its numbers agree with each other."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli
from support.tokens import TINY, write_tokens
from support.user_model import write_my_model

from lmtrain.benchmark.step.trace_summary import CATEGORIES
from lmtrain.commands.benchmark import main
from lmtrain.errors import ConfigError

LOOSE = 5  # times: on a busy machine, a step may take so much longer than the one before


def numbers_in(file: Path) -> dict[str, Any]:
    def refuse(number: str) -> float:
        raise ValueError(f"{number} is no JSON")

    numbers: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"), parse_constant=refuse)
    return numbers


@pytest.mark.slow
def test_a_run_on_its_data_with_a_profile(cli: Cli) -> None:
    write_tokens(cli.folder / "data" / "tiny")
    done = cli(
        *("benchmark", *TINY, "data.path=data/tiny", "--seconds=0.5"), "--json=numbers.json", "--profile=trace.json.gz"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in cli.folder.iterdir()} == {"data", "numbers.json", "trace.json.gz"}
    numbers = numbers_in(cli.folder / "numbers.json")
    measured = numbers["measured"]

    assert len(measured["rounds"]) == len(measured["phases"]) >= 3
    phases = numbers["phase_seconds"]
    assert phases.keys() == {"data", "forward", "backward", "clip", "optimizer", "logging"}
    step = numbers["step_seconds"]
    assert step / LOOSE < sum(phases.values()) < step * LOOSE
    assert 0 < numbers["floor_seconds"] < LOOSE * step
    assert 1 / LOOSE < numbers["step_over_floor"]
    tokens = 4 * 16 * 2
    assert numbers["tokens_per_second"] == pytest.approx(tokens / numbers["config_step_seconds"])
    assert numbers["mfu"] == pytest.approx(
        measured["work"]["flops_per_token"] * numbers["tokens_per_second"] / numbers["peak"]
    )
    assert numbers["peak"] >= max(rate["flops_per_second"] for rate in measured["rates"])
    assert 0 < numbers["price_of_determinism"] < LOOSE
    assert measured["work"]["has_real_data"]
    assert 0.1e9 < measured["memory"] < 20e9
    assert measured["planned_memory"] > 0.1e9
    assert min(measured[name] for name in ("checkpoint_seconds", "checkpoint_stall", "loader", "copy")) > 0
    assert 12 * measured["work"]["parameters"] < measured["checkpoint_bytes"]
    assert list(measured["startup"]) == ["imports and config", "model and data", "first step"]
    assert numbers["config"]["data"]["path"] == "data/tiny"
    assert numbers["environment"]["packages"]["torch"]

    profile = measured["profile"]
    assert profile["categories"].keys() <= CATEGORIES.keys()
    assert sum(profile["categories"].values()) == pytest.approx(profile["seconds"])
    events = json.loads(gzip.decompress((cli.folder / "trace.json.gz").read_bytes()))["traceEvents"]
    assert {"step: forward", "step: backward", "aten::mm"} <= {event["name"] for event in events}
    for sentence in numbers["advice"]:
        assert sentence in done.stdout
    assert "ui.perfetto.dev" in done.stdout


@pytest.mark.slow
def test_a_model_of_a_user_without_data_and_without_products(cli: Cli) -> None:
    write_my_model(cli.folder)
    sizes = ["data.batch_size=2", "data.block_size=8", "model.vocab_size=16", "trainer.gradient_accumulation_steps=1"]
    overrides = [
        "data=tokens",
        "data.path=none",
        "model=mine",
        "system.device=cpu",
        "system.deterministic=false",
        *sizes,
    ]
    done = cli("benchmark", *overrides, "--seconds=0.1", "--json=numbers.json")
    assert (done.returncode, done.stderr) == (0, "")
    numbers = numbers_in(cli.folder / "numbers.json")
    assert numbers["step_over_floor"] is None
    assert numbers["mfu"] is None
    assert numbers["price_of_determinism"] is None
    assert not numbers["measured"]["work"]["has_real_data"]
    assert "random tokens, because the data is not prepared" in done.stdout
    assert "no matrix products" in done.stdout
    assert "system.deterministic=false" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seconds=0"], "--seconds 0: must be above 0"),
        (["--micro-batches=0"], "--micro-batches 0: must be at least 1"),
        (["--profile=trace.txt"], "--profile trace.txt: must end in .json or .json.gz"),
        (["--json=none/here.json"], "--json none/here.json: the folder none does not exist"),
        (["data.path=none", "optimizer.lr=-1"], "optimizer.lr"),
        (["data.path=none", "model.vocab_size=null"], "model.vocab_size=null"),
    ],
)
def test_a_mistake_is_a_config_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=message):
        main(["data=tokens", *arguments])
    assert list(tmp_path.iterdir()) == []
