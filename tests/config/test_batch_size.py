"""A global batch decides the number of micro-batches, and refuses what contradicts it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from support.saved_run import write_saved_run
from support.tokens import TINY

from lmtrain.config.batch_size import (
    batch_sizes,
    derive_accumulation,
    divisors,
    for_processes,
    is_auto,
    keep_found_size,
    possible_sizes,
    with_batch_size,
)
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.run.identity import config_hash


def checked(*overrides: str) -> Any:
    kept = [text for text in TINY if not text.startswith("trainer.gradient_accumulation_steps")]
    return check(compose([*kept, "data.path=data/tiny", *overrides]))


def mistake(*overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        checked(*overrides)
    return str(caught.value)


def test_the_number_of_micro_batches_follows_from_their_size() -> None:
    cfg = checked("trainer.global_batch_size=64", "data.batch_size=16")
    assert cfg.trainer.gradient_accumulation_steps == 4
    assert checked().trainer.gradient_accumulation_steps == 4  # the default of the trainer, without a global batch


def test_auto_is_kept_until_a_size_is_found() -> None:
    cfg = checked("trainer.global_batch_size=64", "data.batch_size=auto")
    assert is_auto(cfg)
    assert cfg.trainer.gradient_accumulation_steps is None
    found = with_batch_size(cfg, 32)
    assert (found.data.batch_size, found.trainer.gradient_accumulation_steps) == (32, 2)
    assert is_auto(cfg)
    assert config_hash(OmegaConf.to_container(found)) == config_hash(  # type: ignore[arg-type]
        OmegaConf.to_container(checked("trainer.global_batch_size=64", "data.batch_size=32"))  # type: ignore[arg-type]
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["data.batch_size=auto"],
            "data.batch_size=auto: needs trainer.global_batch_size, the sequences per optimizer step; give that too, "
            "or a number",
        ),
        (
            ["data.batch_size=16", "trainer.global_batch_size=100"],
            "trainer.global_batch_size=100: is not a multiple of data.batch_size=16; give 96 or 112, or "
            "data.batch_size=10 or 20",
        ),
        (
            ["data.batch_size=4", "trainer.global_batch_size=3"],
            "trainer.global_batch_size=3: is not a multiple of data.batch_size=4; give 4, or data.batch_size=3",
        ),
        (
            ["trainer.global_batch_size=8", "trainer.gradient_accumulation_steps=2"],
            "trainer.gradient_accumulation_steps=2: follows from trainer.global_batch_size=8 and data.batch_size; "
            "leave it out, or give trainer.global_batch_size=null",
        ),
        (["data.batch_size=auto", "trainer.global_batch_size=0"], "trainer.global_batch_size=0: input should be"),
        (["data.batch_size=auto", "data.block_size=0", "trainer.global_batch_size=8"], "data.block_size=0: input"),
    ],
)
def test_a_contradiction_is_explained(overrides: list[str], message: str) -> None:
    assert mistake(*overrides).startswith(message)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            "batch_schedule=[[1000, 32], [2000, 72]]",
            ": 72 sequences from 2000 tokens on are not a multiple of data.batch_size=16; give 64 or 80, or "
            "data.batch_size=12 or 18",
        ),
        ("batch_schedule=[[9, 32], [9, 64]]", ": has tokens 9 after tokens 9; the first numbers must increase"),
        (
            "length_schedule=[[0, 100]]",
            ": a length of 100 from 0 tokens on does not divide data.block_size=512; give 64 or 128",
        ),
        (
            "length_schedule=[[0, 1024]]",
            ": a length of 1024 from 0 tokens on does not divide data.block_size=512; give 512",
        ),
        ("momentum_schedule=[[10, 1.0], [0, 0.9]]", ": has step 0 after step 10; the first numbers must increase"),
        ("batch_schedule=[[0, 0]]", "=[[0, 0]]: element 0: input should be greater than 0"),
        ("batch_schedule=[]", "=[]: "),
    ],
)
def test_a_wrong_schedule_is_refused_with_the_nearest_numbers(schedule: str, message: str) -> None:
    found = mistake("data.batch_size=16", "data.block_size=512", f"trainer.{schedule}")
    assert found.startswith(f"trainer.{schedule.partition('=')[0]}{message}")


def test_a_micro_batch_that_is_to_be_found_divides_every_scheduled_batch() -> None:
    cfg = checked("data.batch_size=auto", "trainer.global_batch_size=48", "trainer.batch_schedule=[[1e6, 72]]")
    assert possible_sizes(cfg) == [1, 2, 3, 4, 6, 8, 12, 24]
    assert batch_sizes(cfg).at(0) == batch_sizes(with_batch_size(cfg, 8)).at(0) == 48
    assert batch_sizes(cfg).at(10**6) == 72


def test_an_experiment_with_both_is_refused_but_a_later_global_batch_replaces_its_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").mkdir()
    head = "# @package _global_\ntrainer:\n  gradient_accumulation_steps: 3\n"
    (tmp_path / "experiments" / "old.yaml").write_text(head)
    (tmp_path / "experiments" / "both.yaml").write_text(f"{head}  global_batch_size: 8\n")
    cfg = checked("experiments=old", "trainer.global_batch_size=8", "data.batch_size=2")
    assert cfg.trainer.gradient_accumulation_steps == 4
    file = Path("experiments", "both.yaml")
    assert mistake("experiments=both").startswith(
        f"{file}: trainer.gradient_accumulation_steps=3: follows from trainer.global_batch_size=8"
    )


@pytest.mark.parametrize("number", [1, 2, 12, 49, 97, 480])
def test_divisors(number: int) -> None:
    assert divisors(number) == [each for each in range(1, number + 1) if number % each == 0]


@given(size=st.integers(1, 40), whole=st.integers(1, 400))
def test_the_values_that_a_message_names_are_valid_and_nearest(size: int, whole: int) -> None:
    problems = derive_accumulation({"data": {"batch_size": size}, "trainer": _trainer(whole)})
    assert bool(problems) == bool(whole % size)
    for text in problems.values():
        wholes, sizes = text.partition("; give ")[2].split(", or data.batch_size=")
        for each in wholes.split(" or "):
            assert not derive_accumulation({"data": {"batch_size": size}, "trainer": _trainer(int(each))})
            assert 0 < abs(int(each) - whole) < size
        for each in sizes.split(" or "):
            assert whole % int(each) == 0


def _trainer(whole: int) -> dict[str, Any]:
    return {"global_batch_size": whole, "gradient_accumulation_steps": 1}


def test_a_recorded_size_replaces_auto_only() -> None:
    recorded = {"data": {"batch_size": 4}}
    auto: dict[str, Any] = {"data": {"batch_size": "auto"}, "trainer": _trainer(8)}
    keep_found_size(auto, recorded)
    assert auto["data"]["batch_size"] == 4
    named: dict[str, Any] = {"data": {"batch_size": 2}, "trainer": _trainer(8)}
    keep_found_size(named, recorded)
    assert named["data"]["batch_size"] == 2
    unfinished: dict[str, Any] = {"data": {"batch_size": "auto"}, "trainer": _trainer(8)}
    keep_found_size(unfinished, {"data": {"batch_size": "auto"}})
    assert unfinished["data"]["batch_size"] == "auto"


def test_a_job_of_a_sweep_is_known_again_by_the_config_that_it_recorded() -> None:
    cfg = checked("trainer.global_batch_size=64", "data.batch_size=auto")
    saved: Any = OmegaConf.to_container(with_batch_size(cfg, 16))
    wanted: Any = OmegaConf.to_container(cfg)
    assert config_hash(wanted) != config_hash(saved)
    keep_found_size(wanted, saved)
    assert wanted == saved


def test_a_fork_may_replace_the_number_of_micro_batches_by_a_global_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    number = "trainer.gradient_accumulation_steps=2"
    run = write_saved_run(Path("outputs", "run"), "model=llama_1m", "data.path=data/tiny", "data.batch_size=4", number)
    whole = [f"fork={run}", "step=4", "trainer.global_batch_size=32"]
    assert check(compose(expand_fork(whole, prepares=False))).trainer.gradient_accumulation_steps == 8
    with pytest.raises(ConfigError, match=f"^{number}: follows from trainer.global_batch_size=32"):
        compose(expand_fork([*whole, number], prepares=False))
    kept = expand_fork([f"fork={run}", "step=4", "trainer.global_batch_size=null"], prepares=False)
    assert check(compose(kept)).trainer.gradient_accumulation_steps == 2


@given(
    st.integers(1, 12),
    st.integers(1, 12),
    st.lists(st.integers(1, 6), max_size=2),
    st.integers(1, 8),
    st.integers(1, 3),
)
def test_processes_share_the_same_batches(
    size: int, micro_batches: int, factors: list[int], processes: int, eval_batches: int
) -> None:
    points = [[1000 * (number + 1), size * factor] for number, factor in enumerate(factors)]
    cfg = OmegaConf.create(
        {
            "data": {"batch_size": size, "block_size": 16},
            "trainer": {
                "gradient_accumulation_steps": micro_batches,
                "batch_schedule": points or None,
                "eval_batches": eval_batches,
                "eval_train_batches": 0,
            },
        }
    )
    batches = [size * micro_batches, *(number for _, number in points)]
    if any(each % processes for each in batches):
        with pytest.raises(ConfigError, match=f"can't be shared by {processes} processes"):
            for_processes(cfg, processes)
        return
    shared = for_processes(cfg, processes)
    own = shared.data.batch_size
    assert all(each % (own * processes) == 0 for each in batches)  # each process has whole micro-batches of each step
    assert own <= size
    assert own * shared.trainer.gradient_accumulation_steps == size * micro_batches
    assert own * shared.trainer.eval_batches == size * eval_batches
    if all(each % (size * processes) == 0 for each in batches):
        assert shared is cfg  # nothing need change
    assert cfg.data.batch_size == size
