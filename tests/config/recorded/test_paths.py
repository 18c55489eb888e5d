"""Tests of the places that the values of a saved run may lead to: prepared data, text to read, and forks."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from support.saved_run import record, write_saved_run

from lmtrain.commands.rerun import main as rerun
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.recorded.paths import check_preparation
from lmtrain.config.recorded.recompose import expand_fork, overrides_to_recompose
from lmtrain.errors import ConfigError

Check = Callable[..., None]


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of the command, with another folder beside it."""
    for name in ("work/texts", "mine"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "a.txt").write_text("x")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.delenv("LMTRAIN_DATA", raising=False)
    return tmp_path / "work"


@pytest.fixture
def checked(work: Path) -> Check:
    """Return a function that checks a run's overrides with those given; `{mine}` is the folder beside this one."""

    def check(*own: str, given: tuple[str, ...] = ()) -> None:
        lines, others = (
            [text.replace("{mine}", str(work.parent / "mine")) for text in texts] for texts in (own, given)
        )
        check_preparation(lines, parse_overrides(others), Path("outputs/run"))

    return check


@pytest.mark.parametrize(
    "own",
    [
        ["data.path={mine}/new", "prepare.source.files=texts/*.txt"],
        ["data.path=../mine/new", "prepare.source.files=texts/*.txt"],
        ["data.path='~/new'", "prepare.source.files=texts/*.txt"],
        ["data.path=data/x", "prepare.source.files={mine}/*.txt"],
        ["data.path=data/x", "prepare.source.files=[texts/*.txt,../mine/*.txt]"],
        ["data.path=data/x", "prepare.source.files=${name}", "name={mine}/*.txt"],
        ["data.path=data/x", "++prepare.source={_target_: lmtrain.data.text.source.TextFiles, files: '{mine}/*'}"],
        ["data.path=data/x", "prepare.source.files=texts/*.txt", "prepare/tokenizer=pretrained",
         "prepare.tokenizer.path={mine}"],
        ["data.path=link/x", "prepare.source.files=texts/*.txt"],
        ["data.path=texts/link/x", "prepare.source.files=texts/*.txt"],
        ["data.path=data/x", "prepare.source.files=texts/link/*.txt"],
        ["data.path=data/x", "prepare.source.files=texts/*/a.txt"],
    ],
)  # fmt: skip
def test_a_saved_run_prepares_and_reads_nothing_outside_the_folder(work: Path, checked: Check, own: list[str]) -> None:
    (work / "texts" / "link").symlink_to(work.parent / "mine")
    (work / "link").symlink_to(work / "texts" / "link")
    if own[0].startswith("data.path=link"):  # the folder's own entries may be links, to a larger disk
        checked("data=text", *own)
        return
    with pytest.raises(ConfigError, match=r"outputs/run: (data\.path|prepare\.\S+)=\S+: leads out of this folder"):
        checked("data=text", *own)


def test_forks_and_reruns_are_restricted_and_plans_prepare_nothing(work: Path) -> None:
    own = ("model=llama_1m", "data=text", "data.path=../mine/new", "prepare.source.files=texts/*.txt")
    run = write_saved_run(Path("outputs", "run"), *own)
    for command in (expand_fork, rerun):
        with pytest.raises(ConfigError, match=r"outputs/run: data\.path=\.\./mine/new: leads out of this folder"):
            command([f"fork={run}", "step=4"] if command is expand_fork else [str(run)])
    assert expand_fork([f"fork={run}", "step=4", "data.path=../mine/new"])[-1] == "data.path=../mine/new"
    assert expand_fork([f"fork={run}", "step=4"], prepares=False)[-1] == "step=4"


def test_the_suggested_command_prepares_the_data(checked: Check, work: Path) -> None:
    own = ("data=text", "data.path=data/x", "prepare.source.files={mine}/*.txt")
    with pytest.raises(ConfigError) as raised:
        checked(*own, "trainer.max_steps=3")
    files = f"'prepare.source.files={work.parent}/mine/*.txt'"
    assert str(raised.value).endswith(f"prepare it first: python -m lmtrain prepare data=text data.path=data/x {files}")
    checked(*own, given=("prepare.source.files={mine}/*.txt",))
    with pytest.raises(ConfigError, match="leads out of this folder"):
        checked(*own, given=("data.path={mine}/other",))
    with pytest.raises(ConfigError, match="leads out of this folder"):
        checked(*own, given=("seed=1,2", "data.path=data/x,data/y"))


def test_data_inside_the_folder_is_prepared(checked: Check, work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = ("data=text", "prepare.source.files=texts/*.txt")
    checked(*recipe, "data.path=data/x")
    checked(*recipe, f"data.path={work}/data/x")
    checked("data=text", "data.path=data/x", "prepare.source.files=*.txt")
    monkeypatch.setenv("LMTRAIN_DATA", str(work.parent / "mine"))
    checked(*recipe, "data.path={mine}/x")


def test_existing_token_files_may_be_anywhere(checked: Check, work: Path) -> None:
    checked("data=tokens", "data.path={mine}/x")  # no recipe, so nothing is prepared
    own = ("data=text", "data.path={mine}/x", "prepare.source.files={mine}/*.txt")
    (work.parent / "mine" / "x").mkdir()
    with pytest.raises(ConfigError, match="leads out of this folder"):
        checked(*own)
    (work.parent / "mine" / "x" / "train.bin").touch()
    checked(*own)
    with pytest.raises(ConfigError, match="leads out of this folder"):
        checked(*own, given=("data.path={mine}/x,data/y",))


def test_paths_in_the_users_own_data_choice_may_be_anywhere(checked: Check, work: Path) -> None:
    Path("conf/data").mkdir(parents=True)
    folder = work.parent / "mine"
    text = f"# @package _global_\ndefaults: [text, _self_]\ndata: {{path: {folder}/x}}\n"
    Path("conf/data/mine.yaml").write_text(f"{text}prepare: {{source: {{files: {folder}/*.txt}}}}\n", encoding="utf-8")
    checked("data=mine", "data.batch_size=4")


@pytest.mark.parametrize("name", ["/tmp/elsewhere", "a/../../elsewhere"])
def test_a_run_name_cannot_lead_out_of_the_outputs(work: Path, name: str) -> None:
    run = write_saved_run(Path("outputs", "run"), "model=llama_1m")
    record(run, ["model=llama_1m", f"name={name}"])
    with pytest.raises(ConfigError, match=r"leads out of outputs/; give another name with name=NAME"):
        overrides_to_recompose(run, ())


@pytest.mark.parametrize("text", ["a\0b", "a\ud800"])
@pytest.mark.parametrize("key", ["name", "data.path"])
def test_a_text_that_cannot_be_a_path_is_refused(work: Path, key: str, text: str) -> None:
    run = write_saved_run(Path("outputs", "run"), "data=text", "data.path=placeholder", "name=placeholder")
    saved = run / ".hydra" / "config.yaml"
    before, line = saved.read_text(encoding="utf-8"), f"{key.rpartition('.')[2]}: "
    assert before.count(f"{line}placeholder") == 1
    saved.write_text(before.replace(f"{line}placeholder", f"{line}{json.dumps(text)}"), encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"^outputs/run: {key}=a.+: has a character that no path can have$"):
        expand_fork(["fork=outputs/run"])


def test_a_link_cannot_lead_a_fork_out_of_the_outputs(work: Path) -> None:
    run = write_saved_run(Path("outputs", "run"), "model=llama_1m", "name=run/there")
    (run / "there").symlink_to(work.parent / "mine")
    with pytest.raises(
        ConfigError, match=r"hydra\.run\.dir=outputs/run/there/\S+: leads out of outputs because of the run's"
    ):
        overrides_to_recompose(run, ())
    for given in ("name=mine", "name=a,b", "hydra.run.dir=here hydra.sweep.dir=there"):
        overrides_to_recompose(run, (), parse_overrides(given.split()))


def test_outputs_may_be_a_link_and_the_users_settings_may_name_any_place(work: Path) -> None:
    (work.parent / "disk").mkdir()
    Path("outputs").symlink_to(work.parent / "disk")
    run = write_saved_run(Path("outputs", "run"), "model=llama_1m", "name=deep/name")
    overrides_to_recompose(run, ())
    Path("experiments").mkdir()
    place = work.parent / "mine"
    Path("experiments/far.yaml").write_text(
        f"# @package _global_\nhydra: {{run: {{dir: '{place}/${{name}}/x'}}}}\n", encoding="utf-8"
    )
    record(run, ["model=llama_1m", "name=deep/name", "experiments=far"])
    overrides_to_recompose(run, ())
    (place / "deep").symlink_to(work)
    with pytest.raises(
        ConfigError, match=r"leads out of .*/mine because of the run's name; give another value with name=…"
    ):
        overrides_to_recompose(run, ())
