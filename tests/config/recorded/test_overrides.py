"""Tests that the recorded overrides of a run are accepted, and those that only a stranger could add are refused."""

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from support.saved_run import change_saved, record, write_saved_run

from lmtrain.config.compose import compose
from lmtrain.config.overrides import parse_overrides
from lmtrain.config.recorded.overrides import recorded_overrides
from lmtrain.config.recorded.recompose import overrides_to_recompose
from lmtrain.config.recorded.trust import check_hydra_trust
from lmtrain.errors import ConfigError

PAYLOAD = "# @package _global_\nhydra:\n  callbacks:\n    evil:\n      _target_: outputs.evil.payload.Evil\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a run in the current folder, with a config that Hydra would accept from any place."""
    monkeypatch.chdir(tmp_path)
    run_dir = write_saved_run(Path("outputs", "evil"), "model=llama_1m", "data=tokens", "data.path=data/x")
    (run_dir / "payload.yaml").write_text(PAYLOAD)
    return run_dir


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("experiments=RUN/payload", "a plain name"),
        ("experiments=/proc/self/cwd/outputs/evil/payload", "a plain name"),
        ("experiments=../outputs/evil/payload", "a plain name"),
        ("experiments=[tiny,../outputs/evil/payload]", "a plain name"),
        ("experiments=a/../../outputs/evil/payload", "a plain name"),
        ("experiments=./tiny", "a plain name"),
        ("experiments=${name}", "a plain name"),
        ("model=../../../outputs/evil/payload", "a plain name"),
        ("+prepare/source@prepare.source=../x", "a plain name"),
        ("~experiments=../x", "a plain name"),
        ("+data@_global_=tokens", "puts a choice into '_global_'"),
        ("+data@_global_.hydra=tokens", "puts a choice into '_global_.hydra'"),
        ("+data@=tokens", "puts a choice into ''"),
        ("+data@elsewhere=tokens", "puts a choice into 'elsewhere'"),
        ("+data@hydra.run=tokens", "sets Hydra itself"),
        ("+experiments@hydra=tiny", "sets Hydra itself"),
        ("hydra.run.dir=elsewhere", "sets Hydra itself"),
        ("hydra.job.env_set.PATH=x", "sets Hydra itself"),
        ("hydra.searchpath=[outputs]", "sets Hydra itself"),
        ("hydra/launcher=basic", "sets Hydra itself"),
        ("+hydra={run: {dir: x}}", "sets Hydra itself"),
        ("~hydra.job.chdir", "sets Hydra itself"),
        ("+={hydra: {run: {dir: x}}}", "has no key"),
        ("+@_global_=config", "has no key"),
        ("seed=1,2", "several values"),
        ("experiments=glob(*)", "several values"),
    ],
)
def test_overrides_that_lmtrain_never_records_are_refused(run: Path, line: str, message: str) -> None:
    record(run, ["model=llama_1m", line.replace("RUN", str(run.absolute()))])
    with pytest.raises(ConfigError, match=message) as raised:
        overrides_to_recompose(run, ())
    assert str(raised.value).startswith(f"{run}/.hydra/overrides.yaml: ")
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("hydra", {"callbacks": {"e": {"_target_": "outputs.evil.payload.Evil"}}}, "its config has the key hydra"),
        ("hydra.run.dir", "elsewhere", "hydra.run.dir: is not a key"),
        ("", {"hydra": {"run": {"dir": "x"}}}, ": is not a key"),
        ("data@_global_", "../outputs/evil/payload", "data@_global_: is not a key"),
        ("prepare/source", "../../outputs/evil/payload", "prepare/source: is not a key"),
        ("experiments", "../outputs/evil/payload", "force-add of config groups is not supported"),
        ("name", [{"x: 1, _target_": "os.system"}], r"_target_=os\.system"),
    ],
)
def test_keys_of_a_saved_config_neither_choose_nor_set_hydra(run: Path, key: str, value: Any, message: str) -> None:
    change_saved(run, key, value)
    with pytest.raises(ConfigError, match=message):
        overrides_to_recompose(run, ())


def test_the_users_own_choices_may_set_hydra(run: Path) -> None:
    for path, text in {
        "experiments/mine.yaml": PAYLOAD.replace("outputs.evil.payload.Evil", "mine.Callback"),
        "experiments/study/first.yaml": "# @package _global_\nseed: 7\n",
        "conf/extra/plain.yaml": "# @package _global_\nsample_tokens: 3\n",
    }.items():
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(text, encoding="utf-8")
    recorded = ["experiments=[mine,study/first]", "+extra=plain", "+logger@logger.second=csv", "data=tokens.yaml",
                "data.path=data/x", "data.order=random", "+trainer/nothing@trainer.x=null"]  # fmt: skip
    record(run, recorded[:-1])
    assert [one.chooses for one in recorded_overrides(run)] == [True, True, True, True, False, False]
    (run / ".hydra" / "config.yaml").write_text(OmegaConf.to_yaml(compose(recorded[:-1])))
    lines = overrides_to_recompose(run, ())
    composed = compose(lines, with_hydra=True)
    assert (composed.seed, composed.sample_tokens, composed.data.order) == (7, 3, "random")
    assert composed.hydra.callbacks.evil._target_ == "mine.Callback"
    record(run, recorded)
    assert recorded_overrides(run)[-1].chooses


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (f"sample_tokens={'[' * 300}{']' * 300}", "nested too deeply"),
        (f"sample_tokens={'int(' * 500}1{')' * 500}", "nested too deeply"),
        (f"model.d_ff=[{','.join(['1'] * 10_000)}]", "larger than 20,000 bytes"),
    ],
)
def test_overrides_that_exhaust_the_stack_or_take_minutes_to_parse_are_refused(
    run: Path, line: str, message: str
) -> None:
    record(run, ["model=llama_1m", line])
    with pytest.raises(ConfigError, match=message):
        overrides_to_recompose(run, ())


@pytest.mark.parametrize("marker", [".hydra", "checkpoints"])
def test_a_config_in_a_run_among_the_experiments_is_not_chosen(run: Path, marker: str) -> None:
    other = Path("experiments", "study", "run")
    (other / marker).mkdir(parents=True)
    (other / "config.yaml").touch()
    (other / "payload.yaml").write_text(PAYLOAD)
    record(run, ["experiments=study/run/payload"])
    with pytest.raises(ConfigError, match="chooses a config inside a run directory"):
        overrides_to_recompose(run, ())
    record(run, ["+experiments/study/run@logger=payload"])
    with pytest.raises(ConfigError, match="chooses a config inside a run directory"):
        overrides_to_recompose(run, ())


@pytest.mark.parametrize("link", ["experiments/linked.yaml", "experiments/linked", "conf/model/linked.yaml"])
def test_a_link_among_the_experiments_does_not_lead_into_the_run(run: Path, link: str) -> None:
    Path(link).parent.mkdir(parents=True)
    Path(link).symlink_to((run / "payload.yaml" if link.endswith(".yaml") else run).absolute())
    group, name = ("model", "linked") if "model" in link else ("experiments", "linked")
    record(run, [f"{group}={name if link.endswith('.yaml') else f'{name}/payload'}"])
    with pytest.raises(ConfigError, match="chooses a config inside a run directory"):
        overrides_to_recompose(run, ())


def test_a_run_can_be_forked_in_its_own_folder_with_shipped_configs(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run)
    assert "model=llama_1m" in overrides_to_recompose(Path(), ())
    Path("conf/model").mkdir(parents=True)
    Path("conf/model/llama_1m.yaml").write_text("_target_: lmtrain.model.llama.Llama\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="chooses a config inside a run directory"):
        overrides_to_recompose(Path(), ())


def test_trust_is_also_checked_for_hydras_settings(run: Path) -> None:
    settings = compose(["hydra/launcher=basic", "hydra/sweeper=optuna"], with_hydra=True).hydra
    check_hydra_trust(settings, (), run)  # shipped and installed classes
    for node in ({"_target_": "os.system"}, {"_target_": "evil.Callback"}, {"x": "${oc.env:HOME}"}):
        with_evil = OmegaConf.create({**settings, "callbacks": {"e": node}})
        with pytest.raises(ConfigError, match=r"hydra\.callbacks\.e\.\w+=(os\.system|evil\.Callback|oc\.env:HOME)"):
            check_hydra_trust(with_evil, (), run)
        check_hydra_trust(with_evil, ["os.system", "evil.Callback", "oc.env:HOME"], run)


def test_the_users_own_overrides_may_set_hydra(run: Path) -> None:
    given = parse_overrides(["hydra.run.dir=elsewhere", "hydra/launcher=basic"])
    assert "data.path=data/x" in overrides_to_recompose(run, (), given)


def test_a_key_that_is_newer_than_the_run_is_left_out_unless_it_is_given(run: Path) -> None:
    path = run / ".hydra" / "config.yaml"
    saved = OmegaConf.load(path)
    del saved.trainer["global_batch_size"], saved.model["attention"]
    assert compose(["model=llama_1m"]).trainer.global_batch_size is None  # Hydra does not delete such a key
    path.write_text(OmegaConf.to_yaml(saved), encoding="utf-8")
    assert compose(overrides_to_recompose(run, ())) == saved
    given = ["model.attention=math", "trainer.global_batch_size=64"]
    composed = compose([*overrides_to_recompose(run, (), parse_overrides(given)), *given])
    assert (composed.model.attention, composed.trainer.global_batch_size) == ("math", 64)
