"""Tests of the user's own conf: another program's config.yaml is ignored, and an unreadable file is named."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.tokens import TINY

from lmtrain.config.compose import compose, compose_with_notes
from lmtrain.config.conf_source import menu_choices
from lmtrain.config.shipped import shipped
from lmtrain.errors import ConfigError
from lmtrain.run.new_run import new_run
from lmtrain.sweep.job_config import check_job_config

FOREIGN_MENU = "defaults:\n  - _self_\n  - data: mnist\n  - trainer: default\nseed: 12\n"
GLOBAL = "# @package _global_\n"


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(name: str, content: str | bytes) -> None:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)


def test_the_main_config_of_another_program_is_named_and_not_read() -> None:
    write("conf/config.yaml", FOREIGN_MENU)
    write("conf/data/mnist.yaml", "_target_: data.Mnist\n")
    taken = compose_with_notes(["experiments=tiny"])
    assert (taken.config.seed, taken.config.optimizer.lr) == (1337, 3e-3)
    assert [note.partition(",")[0] for note in taken.notes] == ["conf/config.yaml: not read"]
    with pytest.raises(ConfigError, match=r"trainer.max_epochs=3: unknown key.*\(conf/config.yaml: not read"):
        compose(["trainer.max_epochs=3"])


def test_a_users_main_config_with_all_groups_is_used() -> None:
    menu = OmegaConf.load(shipped("conf") / "config.yaml")
    menu.seed = 7
    entries = OmegaConf.to_container(menu.defaults)
    assert isinstance(entries, list)
    menu.defaults = [{"scheduler": "constant"} if entry == {"scheduler": "cosine"} else entry for entry in entries]
    write("conf/config.yaml", OmegaConf.to_yaml(menu))
    taken = compose_with_notes([])
    assert (taken.config.seed, taken.choices["scheduler"], list(taken.notes)) == (7, "constant", [])
    assert menu_choices()["scheduler"] == "constant"


@pytest.mark.parametrize("content", ["a: [", "- 1\n", b"\xff\xfe\x00", ""])
def test_an_unreadable_main_config_is_ignored(content: str | bytes) -> None:
    write("conf/config.yaml", content)
    assert compose_with_notes([]).config.seed == 1337


def test_a_foreign_file_that_shadows_a_shipped_choice_is_named() -> None:
    write("conf/optimizer/adamw.yaml", "lr: 0.1\n")
    with pytest.raises(ConfigError, match=r"^conf/optimizer/adamw.yaml: replaces the shipped optimizer=adamw but"):
        compose([])


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("conf/optimizer/adamw.yaml", "_target_: nowhere.Adam\nlr: 0.1\n", "optimizer._target_"),
        ("conf/trainer/default.yaml", "_target_: nowhere.Trainer\nmax_epochs: 3\n", "scheduler.max_steps"),
        ("conf/logger/csv.yaml", "csv:\n  _target_: nowhere.Logger\n", "logger.csv._target_"),
    ],
)
def test_a_mistake_in_a_foreign_file_names_it(file: str, content: str, problem: str, token_folder: Path) -> None:
    write(file, content)
    overrides = [*TINY, f"data.path={token_folder}", "logger=[csv]"]
    overrides = [text for text in overrides if not (text.startswith("trainer.") and "trainer" in file)]
    for make in (lambda: new_run(overrides), lambda: check_job_config(tuple(overrides), ())):
        with pytest.raises(ConfigError, match=rf"(?m)^{problem}.*; \w+={Path(file).stem} comes from {file} here, not"):
            make()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xef\xbb\xbf# @package _global_\nname: x\n", "mine.yaml: begins with a byte order mark"),
        ("# @package _global_\nname: x\n".encode("utf-16"), "mine.yaml: begins with a byte order mark"),
        (b"# @package _global_\nname: caf\xe9\n", r"mine.yaml, line 2: not UTF-8 \(byte 0xe9\); save it as UTF-8"),
        (b"name: x\n", "mine.yaml: its first line must be `# @package _global_`"),
        (b"name: x\n# @package _global_\n", "mine.yaml: its first line must be `# @package _global_`"),
        (b"# @package _global_\nname: [\n", r"experiments/mine.yaml.*line 3"),
    ],
)
def test_an_unreadable_experiment_is_named_with_the_way_out(content: bytes, message: str) -> None:
    write("experiments/mine.yaml", content)
    with pytest.raises(ConfigError, match=message):
        compose(["experiments=mine"])


def test_a_choice_in_another_encoding_is_named() -> None:
    write("conf/optimizer/mine.yaml", "_target_: x.Y\n# gr\xf6\xdfe\n".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"^conf/optimizer/mine.yaml, line 2: not UTF-8"):
        compose(["optimizer=mine"])
