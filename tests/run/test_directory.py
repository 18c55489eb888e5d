"""Tests of the ownership of a run directory, and of the recorded environment."""

import json
import os
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest

from lmtrain.files.limited import read_json
from lmtrain.run import environment
from lmtrain.run.directory import RunDirectory
from lmtrain.run.environment import describe_environment

HOLD = """
import sys, time
from pathlib import Path
from lmtrain.run.directory import RunDirectory
with RunDirectory(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(60)
"""


def test_one_owner_at_a_time_and_none_after_a_kill(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    with pytest.raises(ValueError, match=f"in use by process {process.pid} on "), RunDirectory(tmp_path):
        pass
    process.kill()
    process.communicate()
    with RunDirectory(tmp_path) as directory:
        assert directory.lock.owner().startswith(f"process {os.getpid()} on ")


def test_a_json_file_is_complete_or_absent(tmp_path: Path) -> None:
    with RunDirectory(tmp_path) as directory:
        directory.write_json("result.json", {"a": 1})
        with pytest.raises(TypeError):
            directory.write_json("result.json", {("not", "json"): 1})
    assert read_json(tmp_path / "result.json") == {"a": 1}
    assert read_json(tmp_path / "nothing.json") == {}
    (tmp_path / "half.json").write_text('{"a": ')
    assert read_json(tmp_path / "half.json") == {}


def test_the_run_id_does_not_change(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path)
    first = directory.run_id()
    assert len(first) == 8
    assert directory.run_id() != first  # a new id each time until it is recorded
    directory.write_json("environment.json", {"run_id": first})
    assert directory.run_id() == first


def test_the_environment_has_the_commit_and_the_diff_but_no_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "topsecret")
    assert describe_environment("x", "cpu")["git"] is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    (tmp_path / "a.py").write_text("one\n")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    (tmp_path / "a.py").write_text("two\n")
    recorded = describe_environment("x", "cpu")
    assert len(recorded["git"]["commit"]) == 40
    assert "+two" in recorded["git"]["diff"]
    assert not recorded["git"]["diff_truncated"]
    assert recorded["git"]["changed"] == ["a.py"]
    assert recorded["git"]["untracked"] == []
    assert recorded["packages"]["torch"]
    assert "topsecret" not in json.dumps(recorded)


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "train.log", ".tmp-result.json", ".hydra/config.yaml"])
def test_a_pipe_in_a_run_is_not_waited_for(tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: is neither a file nor a folder"), RunDirectory(tmp_path):
        pass


def test_large_changes_are_recorded_with_their_names_and_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "s3cr3t-" * 20
    monkeypatch.setenv("MY_TOKEN", secret)
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@x"]
    large, many = tmp_path / "large.txt", [tmp_path / f"{number}.txt" for number in range(3)]
    for path in (large, *many):
        path.write_text("")
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True)
    with large.open("wb") as file:
        file.truncate(200_000_000_000)  # git would need minutes to read it
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    (tmp_path / f"{secret}.txt").touch()
    recorded = describe_environment("x", "cpu")["git"]
    assert recorded["diff_truncated"]
    assert recorded["diff"] == ""
    assert recorded["changed"] == ["large.txt"]
    assert sorted(recorded["untracked"]) == ["<MY_TOKEN>.txt", "new/"]
    large.write_text("")
    for path in many:
        path.write_text(f"{secret}\n" * 6000)  # 840 kB each
    tracemalloc.start()
    recorded = describe_environment("x", "cpu")["git"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 50e6
    assert recorded["diff_truncated"]
    assert 50_000 < len(recorded["diff"]) < 1_000_000
    assert "s3cr3t" not in json.dumps(recorded)
    assert recorded["changed"] == ["0.txt", "1.txt", "2.txt"]


def test_git_that_takes_too_long_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "git").write_text("#!/bin/sh\nsleep 100 &\nwait\n")
    (tmp_path / "git").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(environment, "GIT_TIMEOUT_S", 0.2)
    started = time.monotonic()
    assert describe_environment("x", "cpu")["git"] is None
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("name", [".lock", "metrics.jsonl", "train.log", ".hydra", ".tmp-result.json"])
def test_a_link_in_a_run_is_not_written_through(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match="a link that lmtrain did not make"), RunDirectory(tmp_path / "run"):
        pass
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize(
    "name",
    ["checkpoints", "wandb", "tensorboard", "bad-batches", "wandb/logs", "wandb/latest-run", "wandb/logs/core.log",
     ".hydra/config.yaml", "checkpoints/latest", "checkpoints/step-00000004", "tensorboard/events"],
)  # fmt: skip
def test_a_link_that_leads_out_of_a_run_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "run" / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "run" / name).symlink_to(tmp_path / "mine")
    with pytest.raises(ValueError, match=rf"/run/{name}: a link.* a copy of its target, or remove it"):
        RunDirectory(tmp_path / "run").__enter__()
    assert [*(tmp_path / "mine").iterdir()] == []


def test_links_from_lmtrain_and_wandb_are_accepted_after_a_run_was_moved(tmp_path: Path) -> None:
    first = tmp_path / "first"
    for folder in ("checkpoints", "wandb/logs", "wandb/offline-run-1/logs"):
        (first / folder).mkdir(parents=True)
    (first / "checkpoints" / "latest").symlink_to("step-00000004")
    (first / "wandb" / "latest-run").symlink_to("offline-run-1")
    (first / "wandb" / "offline-run-1" / "logs" / "debug-core.log").symlink_to(first / "wandb" / "logs" / "core.log")
    with RunDirectory(first):
        pass
    with RunDirectory(first.rename(tmp_path / "second")):
        pass


def test_a_file_is_never_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    (tmp_path / "run").mkdir()
    with RunDirectory(tmp_path / "run") as directory:
        (tmp_path / "run" / ".tmp-result.json").symlink_to(tmp_path / "mine")
        directory.write_json("result.json", {"status": "completed"})
    assert (tmp_path / "mine").read_text() == "precious"
    assert not (tmp_path / "run" / "result.json").is_symlink()
