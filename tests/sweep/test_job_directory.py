"""Job directories have readable, unique names, and links in them are refused."""

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmtrain.errors import ConfigError
from lmtrain.sweep.job_directory import (
    MAX_NAME_CHARS,
    directory_name,
    make_sweep_directory,
    name_without_order,
    remaining_work,
)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["experiments=quickstart", "optimizer.lr=0.001", "seed=1"], "experiments=quickstart,lr=0.001,seed=1"),
        (["seed=1", "optimizer.lr=0.001", "experiments=quickstart"], "experiments=quickstart,lr=0.001,seed=1"),
        (["trainer.max_steps=9", "scheduler.max_steps=7"], "scheduler.max_steps=7,trainer.max_steps=9"),
        (["seed=1", "name=other", "logger=[]", "retry_failed=true", "hydra.verbose=true"], "seed=1"),
        (["name=other"], "defaults"),
        (["model=gpt2", "seed=1", '++fork="runs/lr=0.1"', "step=40", "seed=2"], "fork=lr=0.1,seed=2,step=40,e72e2960"),
    ],
)
def test_a_directory_is_named_after_its_jobs_overrides(overrides: list[str], name: str) -> None:
    assert directory_name(overrides) == name


def test_swept_keys_come_first_and_are_kept_if_a_name_is_cut() -> None:
    swept = {"seed", "optimizer.lr"}
    job = ["experiments=quickstart", "optimizer.lr=0.001", "seed=1"]
    assert directory_name(job, swept) == "lr=0.001,seed=1,experiments=quickstart"
    assert directory_name([*job, "data.path=a/b"], swept).startswith("lr=0.001,seed=1,path=a_b,experiments=quick")
    assert directory_name([*job, f"a.note={'x' * 100}"], swept).startswith("lr=0.001,seed=1,")
    fork = ["model=gpt2", '++fork="runs/lr=0.1"', "step=40", "seed=2"]
    assert directory_name(fork, {"seed"}).startswith("seed=2,fork=lr=0.1,step=40,")
    # If a key is given twice, the last value counts, but the names differ.
    assert directory_name(["seed=1", "seed=2"]) != directory_name(["seed=2"])


overrides = st.lists(
    st.tuples(st.from_regex(r"[a-z]{1,4}", fullmatch=True), st.text(max_size=60)),
    min_size=1,
    max_size=12,
    unique_by=lambda pair: pair[0],
).map(lambda pairs: ["=".join(pair) for pair in pairs if pair[0] not in ("name", "logger") and "hydra" not in pair[0]])


@settings(max_examples=50)
@given(overrides, overrides, st.sets(st.integers(0, 11)))
def test_names_are_valid_file_names_and_differ_if_the_jobs_do(
    one: list[str], other: list[str], numbers: set[int]
) -> None:
    swept = {text.partition("=")[0] for number, text in enumerate([*one, *other]) if number in numbers}
    for name in (directory_name(one), directory_name(other, swept)):
        assert len(name) <= MAX_NAME_CHARS
        assert not name.startswith((".", "-"))
        assert all(character.isascii() and (character.isalnum() or character in "_.=,+-") for character in name)
    assert (directory_name(one) == directory_name(other)) == (sorted(one) == sorted(other))
    assert name_without_order(directory_name(other)) == name_without_order(directory_name(other, swept))
    same = name_without_order(directory_name(one)) == name_without_order(directory_name(other, swept))
    assert same == (sorted(one) == sorted(other))


def test_jobs_that_differ_in_odd_characters_or_long_values_have_different_names() -> None:
    names = [
        directory_name(overrides)
        for overrides in (
            ["betas=[0.9,0.95]"], ["betas=[0.9,0.99]"], ["a/b=c"], ["a.b=c"], ["a=b c"], ["a=b/c"],
            [f"data.path={'x' * 200}1"], [f"data.path={'x' * 200}2"],
            ['++fork="a/run"', "step=1"], ['++fork="b/run"', "step=1"], ["seed=1", '++fork="b/run"', "step=1"],
        )
    ]  # fmt: skip
    assert all(one != other for one, other in itertools.combinations(names, 2))


def test_a_link_in_a_sweeps_directory_is_refused(tmp_path: Path) -> None:
    make_sweep_directory(tmp_path / "sweep")
    (tmp_path / "sweep" / "seed=1").mkdir()
    make_sweep_directory(tmp_path / "sweep")
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "sweep" / "multirun.yaml").symlink_to(tmp_path / "mine")
    with pytest.raises(ConfigError, match=r"/sweep/multirun\.yaml: a link"):
        make_sweep_directory(tmp_path / "sweep")


@pytest.mark.parametrize("name", ["job.log", "result.json", "checkpoints"])
def test_a_job_with_a_link_among_its_files_has_failed(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to(tmp_path.parent)
    work = remaining_work(tmp_path, ("seed=1",), (), retry_failed=True)
    assert work.status == "failed"
    assert str(work.reason).startswith(f"{tmp_path / name}: a link")
