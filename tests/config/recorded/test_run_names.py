"""Tests of the names by which commands find runs."""

import json
from pathlib import Path

import pytest

from lmtrain.config.recorded.run_names import find_folder, find_run
from lmtrain.errors import ConfigError


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(path: str, started: str | None = "2026-11-26T10:00:00+0000") -> Path:
    folder = Path(path)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: x")
    (folder / "environment.json").write_text(json.dumps({"started": started}))
    return folder


def sweep(path: str, jobs: int) -> list[Path]:
    found = [run(f"{path}/lr={number}") for number in range(jobs)]
    Path(path, "multirun.yaml").write_text("", encoding="utf-8")
    return found


def test_a_path_is_the_run_there() -> None:
    assert find_run(run("out")) == Path("out")
    assert find_run("nowhere") == Path("nowhere")


def test_a_folder_means_the_run_that_was_started_last() -> None:
    run("outputs/bard/b-1", "2026-11-26T10:00:00+0000")
    newest = run("outputs/bard/a-2", "2026-11-26T09:30:00-0100")  # in another time zone
    assert find_run("outputs/bard") == newest
    assert find_run("outputs/bard/latest") == newest
    assert find_run(Path("outputs")) == newest


def test_runs_of_the_same_second_are_in_natural_order() -> None:
    for number in (2, 10, 9):
        run(f"outputs/x/run-{number}")
    assert find_run("outputs/x") == Path("outputs/x/run-10")


def test_a_run_without_a_start_time_has_the_time_of_its_config() -> None:
    run("outputs/x/old", "2020-01-01T00:00:00+0000")
    newest = run("outputs/x/other", None)
    run("outputs/x/odd", "1999-01-01T00:00:00+0000")
    assert find_run("outputs/x") == newest


def test_latest_is_the_newest_run_below_outputs() -> None:
    run("elsewhere/run", "2027-01-01T00:00:00+0000")
    run("outputs/a/1", "2026-11-26T10:00:00+0000")
    newest = run("outputs/b/1", "2026-11-26T10:00:01+0000")
    assert find_run("latest") == newest
    assert find_folder("latest") == newest


def test_a_folder_that_is_called_latest_is_that_folder() -> None:
    run("outputs/a/1")
    assert find_run(run("latest")) == Path("latest")


def test_latest_needs_a_run() -> None:
    with pytest.raises(
        ConfigError, match=r"^resume=latest: there is no run below outputs/ here; give a run directory$"
    ):
        find_run("latest", "resume=")


def test_a_name_is_that_of_a_folder_or_the_end_of_a_run() -> None:
    first = run("outputs/bard/20261126-100000-1a2b", "2026-11-26T10:00:00+0000")
    second = run("outputs/bard/20261126-110000-3c4d", "2026-11-26T11:00:00+0000")
    assert find_run("bard") == second
    assert find_run("ba") == second
    assert find_folder("bard") == Path("outputs/bard")
    assert find_run("1a2b") == first
    assert find_run("20261126-10") == first


def test_a_whole_name_goes_before_the_beginning_of_others() -> None:
    run("outputs/bard-large/1", "2026-11-26T12:00:00+0000")
    expected = run("outputs/bard/1")
    assert find_run("bard") == expected


def test_an_ambiguous_name_lists_the_candidates() -> None:
    run("outputs/bard-large/1")
    run("outputs/bard-small/1")
    expected = r"^fork=bard: could be outputs/bard-large, outputs/bard-small; give one of them$"
    with pytest.raises(ConfigError, match=expected):
        find_run("bard", "fork=")


def test_a_sweep_is_ambiguous_unless_it_has_one_run() -> None:
    sweep("outputs/lm/sweep-1", 8)
    message = r"^outputs/lm/sweep-1: is a sweep of 8 runs; give one of outputs/lm/sweep-1/lr=7, .* and 2 more$"
    with pytest.raises(ConfigError, match=message):
        find_run("outputs/lm/sweep-1")
    assert find_folder("sweep-1") == Path("outputs/lm/sweep-1")
    (only,) = sweep("outputs/lm/sweep-2", 1)
    assert find_run("sweep-2") == only


def test_runs_that_confirm_others_and_folders_of_a_run_are_no_candidates() -> None:
    expected = run("outputs/x/1")
    Path("outputs/x/1/checkpoints").mkdir()
    run("outputs/x/1/wandb/inner", "2027-01-01T00:00:00+0000")
    run("outputs/x/confirm/seed=1", "2027-01-01T00:00:00+0000")
    Path("outputs/x/confirm/confirm.json").write_text("{}", encoding="utf-8")
    assert find_run("outputs/x") == expected
    assert find_run("outputs/x/confirm") == Path("outputs/x/confirm/seed=1")
