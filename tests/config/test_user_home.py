"""Tests that `~/` is the user's home in every path: in overrides, YAML files, variables and arguments."""

from pathlib import Path

import pytest
from support.command_line import Cli

from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.config.token_files import token_folders


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("LMTRAIN_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["data=tokens", "data.path=~/a"], {"data.path": "a"}),
        (["data=mixture", "data.paths={x: ~/a, y: ~/b}", "data.weights={x: 1, y: 1}"], {"data.paths.x": "a"}),
    ],
)
def test_token_folders(home: Path, overrides: list[str], expected: dict[str, str]) -> None:
    folders = token_folders(check(compose(overrides)).data)
    assert {key: folders[key] for key in expected} == {key: home / name for key, name in expected.items()}


def test_the_environment_variable_that_moves_all_data(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LMTRAIN_DATA", "~/data")
    assert check(compose([])).data.path == str(home / "data" / "stdlib")


def test_files_and_tokenizers_for_prepare(home: Path) -> None:
    files = ["data=text", "prepare.source.files=[~/a.txt,b.txt]"]
    cfg = check(compose([*files, "prepare/tokenizer=pretrained", "prepare.tokenizer.path=~/tokenizer"]))
    assert cfg.prepare.source.files == [str(home / "a.txt"), "b.txt"]
    assert cfg.prepare.tokenizer.path == str(home / "tokenizer")


def test_run_directories_and_forks(home: Path) -> None:
    composed = compose(["hydra.run.dir=~/runs/${name}", "fork=~/runs/a"], with_hydra=True)
    assert composed.hydra.run.dir == str(home / "runs" / "lmtrain")
    assert composed.fork == str(home / "runs" / "a")


def test_paths_in_the_users_yaml_files(home: Path, tmp_path: Path) -> None:
    (tmp_path / "experiments").mkdir()
    text = "# @package _global_\ndata: {path: ~/a}\nhydra: {run: {dir: '~/runs/${name}'}}\n"
    (tmp_path / "experiments" / "mine.yaml").write_text(text, encoding="utf-8")
    composed = compose(["experiments=mine"], with_hydra=True)
    assert composed.hydra.run.dir == str(home / "runs" / "lmtrain")
    assert check(compose(["experiments=mine"])).data.path == str(home / "a")


def test_similar_looking_texts_are_not_changed() -> None:
    source = check(compose(["data=text", "prepare.source.files='a~/b'", "prepare.source.separator='~'"])).prepare.source
    assert (source.files, source.separator) == ("a~/b", "~")


@pytest.mark.parametrize(
    "arguments",
    [
        ["data=tokens", "data.path=~/none"],
        ["resume=~/none"],
        ["fork=~/none"],
        ["inspect", "~/none"],
        ["evaluate", "~/none"],
        ["sample", "~/none"],
        ["--rerun", "~/none"],
    ],
)
def test_no_folder_called_tilde_is_created(cli: Cli, home: Path, arguments: list[str]) -> None:
    run = cli(*arguments, HOME=str(home))
    assert run.returncode == 2, run.stderr
    assert f"{home}/none" in run.stderr
    assert not (cli.folder / "~").exists()
