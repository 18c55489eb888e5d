"""`benchmark scaling` starts real processes; what they send is what the formulas of `plan` say."""

import json
from pathlib import Path

import pytest
from support.tokens import TINY

from lmtrain.benchmark.scaling.report import SEND, TRAIN, WITHOUT_GRADIENTS, Scaling
from lmtrain.commands.benchmark import main
from lmtrain.errors import ConfigError

# The messages of losses and norms are a few hundred bytes; beside these weights they are below 1%.
LARGER = [*TINY, "model.d_model=128", "model.d_ff=256", "data.batch_size=2", "trainer.gradient_accumulation_steps=6"]
NEAR = 0.05
CASES = {
    "ddp": ["parallel=ddp", "parallel.bucket_mb=0.5"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_processes_send_what_plan_calculates(
    name: str, tmp_path: Path, token_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "scaling.json"
    options = ["--processes=1,2,3", "--rounds=1", "--steps=2", f"--json={out}"]
    assert main(["scaling", *LARGER, f"data.path={token_folder}", *CASES[name], *options]) == 0
    numbers = json.loads(out.read_text(encoding="utf-8"))
    one, two, three = numbers["processes"]
    assert (one["size"], one["efficiency"], one["hidden"]) == (1, 1.0, None)
    for found in (two, three):
        assert found["planned_bytes_per_step"] > 100_000
        assert found["sent_bytes_per_step"] == pytest.approx(found["planned_bytes_per_step"], rel=NEAR)
        assert found["hidden"] is not None
        assert found["tokens_per_second"] == pytest.approx(12 * 16 / found["step_seconds"])
    (seconds,) = numbers["seconds"]
    others = {f"{do}, {size}" for do in (TRAIN, WITHOUT_GRADIENTS, SEND) for size in (2, 3)}
    assert seconds.keys() == {f"{TRAIN}, 1"} | others
    assert min(seconds.values()) > 0
    assert "plan calculates" in capsys.readouterr().out


def test_efficiency_and_the_hidden_share_are_medians_within_rounds() -> None:
    rounds = [
        {f"{TRAIN}, 1": 8.0, f"{TRAIN}, 2": 5.0, f"{WITHOUT_GRADIENTS}, 2": 4.0, f"{SEND}, 2": 2.0},
        {f"{TRAIN}, 1": 16.0, f"{TRAIN}, 2": 10.0, f"{WITHOUT_GRADIENTS}, 2": 8.0, f"{SEND}, 2": 4.0},
    ]
    found = Scaling(rounds, [1, 2], {1: [], 2: [110.0, 90.0]}, {1: 0.0, 2: 100.0}, step_tokens=100)
    assert (found.efficiency(1), found.efficiency(2)) == (1.0, 0.8)
    assert (found.hidden(1), found.hidden(2)) == (None, 0.5)
    assert (found.sent_bytes(1), found.sent_bytes(2)) == (None, 100.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes=1,x"], "--processes 1,x: must be whole numbers with commas between them, such as 1,2,4"),
        (["--processes=0"], "--processes 0: must be whole numbers with commas between them, such as 1,2,4"),
        (["--processes=5"], "trainer.global_batch_size=12: the sequences of a step can't be shared by 5 processes; "
         "start 4 or 6, or give a multiple of 5"),
    ],
)  # fmt: skip
def test_mistakes_are_errors_before_any_process_starts(token_folder: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        main(["scaling", *LARGER, f"data.path={token_folder}", *options])
    assert str(caught.value) == message


@pytest.mark.slow
def test_a_mistake_that_shows_in_the_processes_is_reported(token_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^system.dtype=float8: needs a GPU"):
        main(["scaling", *LARGER, f"data.path={token_folder}", "system.dtype=float8", "--processes=2"])
