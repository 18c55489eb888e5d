"""`benchmark scaling` starts real processes; what they send is what the formulas of `plan` say."""

import json
from pathlib import Path

import pytest
from support.tokens import TINY

from lmtrain.benchmark.scaling.report import SEND, TRAIN, WITHOUT_GRADIENTS, Scaling
from lmtrain.commands.benchmark import main as benchmark
from lmtrain.commands.plan import main as plan
from lmtrain.errors import ConfigError

# The messages of losses and norms are a few hundred bytes; beside these weights they are below 1%.
LARGER = [*TINY, "model.d_model=128", "model.d_ff=256", "data.batch_size=2", "trainer.gradient_accumulation_steps=6"]
NEAR = 0.05
CASES = {
    "ddp": ("1,2,3", ["parallel=ddp", "parallel.bucket_mb=0.5"]),
    "fsdp": ("2,3", ["parallel=fsdp"]),
    "kept weights": ("2", ["parallel=fsdp", "parallel.reshard_after_forward=false"]),
    "whole tensors": ("2,3", ["parallel=fsdp", "optimizer=muon", "parallel.reduce_each_micro_batch=true"]),
    "copies": ("4", ["parallel=fsdp", "parallel.shards=2"]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_processes_send_and_hold_what_plan_calculates(
    name: str, tmp_path: Path, token_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, planned = tmp_path / "scaling.json", tmp_path / "plan.json"
    sizes, overrides = CASES[name]
    arguments = [*LARGER, f"data.path={token_folder}", *overrides]
    options = [f"--processes={sizes}", "--rounds=1", "--steps=2", f"--json={out}"]
    assert benchmark(["scaling", *arguments, *options]) == 0
    assert "plan calculates" in capsys.readouterr().out
    numbers = json.loads(out.read_text(encoding="utf-8"))
    (seconds,) = numbers["seconds"]
    several = [size for size in map(int, sizes.split(",")) if size > 1]
    assert {f"{do}, {size}" for do in (TRAIN, WITHOUT_GRADIENTS, SEND) for size in several} <= seconds.keys()
    assert min(seconds.values()) > 0
    for found in numbers["processes"]:
        assert found["tokens_per_second"] == pytest.approx(12 * 16 / found["step_seconds"])
        if found["size"] == 1:
            assert (found["efficiency"], found["sent_bytes_per_step"]) == (1.0, 0)
            continue
        assert found["planned_bytes_per_step"] > 100_000
        assert found["sent_bytes_per_step"] == pytest.approx(found["planned_bytes_per_step"], rel=NEAR)
        assert plan([*arguments, f"parallel.world_size={found['size']}", f"--json={planned}"]) == 0
        processes = json.loads(planned.read_text(encoding="utf-8"))["processes"]
        memory, held = processes["memory_bytes"], found["held_bytes"]
        assert len(held) == found["size"]
        for kind in ("weights", "optimizer"):
            assert max(each[kind] for each in held) == pytest.approx(memory[kind], rel=NEAR)


def rounds(*longer: float) -> list[dict[str, float]]:
    """Return rounds in which a step with two processes is longer than without gradients by these seconds."""
    return [
        {f"{TRAIN}, 1": 8.0, f"{TRAIN}, 2": 5.0, f"{WITHOUT_GRADIENTS}, 2": 5.0 - each, f"{SEND}, 2": 2.0}
        for each in longer
    ]


def scaling(*longer: float) -> Scaling:
    held = {1: [], 2: []}
    return Scaling(rounds(*longer), [1, 2], {1: [], 2: [110.0, 90.0]}, {1: 0.0, 2: 100.0}, held, step_tokens=100)


def test_efficiency_and_the_hidden_share_are_medians_over_rounds() -> None:
    found = scaling(1.0, 1.0, 1.01)
    assert (found.efficiency(1), found.efficiency(2)) == (1.0, 0.8)
    assert (found.hidden(1), found.hidden(2)) == (None, (0.5, 0.0))
    assert (found.sent_bytes(1), found.sent_bytes(2)) == (None, 100.0)


def test_noise_hides_the_hidden_share() -> None:
    assert scaling(0.0, 1.0, 2.0).hidden(2) is None
    assert scaling(1.0, 1.0).hidden(2) is None  # too few rounds to know


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--processes=1,x"], "--processes 1,x: must be whole numbers with commas between them, such as 1,2,4"),
        (["--processes=0"], "--processes 0: must be whole numbers with commas between them, such as 1,2,4"),
        (["--processes=5"], "data.batch_size × trainer.gradient_accumulation_steps = 12: the sequences of a step can't "
         "be shared by 5 processes; start 4 or 6, or give a multiple of 5"),
    ],
)  # fmt: skip
def test_mistakes_are_errors_before_any_process_starts(token_folder: Path, options: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        benchmark(["scaling", *LARGER, f"data.path={token_folder}", *options])
    assert str(caught.value) == message


@pytest.mark.slow
def test_a_mistake_that_shows_in_the_processes_is_reported(token_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^system.dtype=float8: needs a GPU"):
        benchmark(["scaling", *LARGER, f"data.path={token_folder}", "system.dtype=float8", "--processes=2"])
