"""Tests of composing a config, and of the message for every kind of mistake."""

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from support.command_line import Cli
from support.tokens import TINY
from support.user_model import write_my_model

from lmtrain.config.build import build
from lmtrain.config.check import GROUPS, check
from lmtrain.config.compose import compose
from lmtrain.config.overrides import quoted
from lmtrain.config.preflight import preflight
from lmtrain.config.shipped import shipped
from lmtrain.data.meta import read_meta, write_meta
from lmtrain.errors import ConfigError


def composed(*overrides: str) -> object:
    return OmegaConf.to_container(check(compose(list(overrides))))


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LMTRAIN_DATA", raising=False)


@pytest.mark.parametrize("override", ["data.path='caf\udce9'", "name='caf\udce9'"])
def test_a_value_that_is_not_utf_8_is_one_line(override: str) -> None:
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{key}=caf\udce9: is not UTF-8"):
        check(compose(["data=tokens", "data.path=x", override]))


@given(st.text(alphabet="a \\\"'$(){}[],=:#*", max_size=8).filter(lambda text: "${" not in text))
def test_any_text_survives_hydras_grammar(text: str) -> None:
    assert OverridesParser.create().parse_override(f"key={quoted(text)}").value() == text


def test_defaults_are_those_of_the_design() -> None:
    cfg = check(compose([]))
    assert (cfg.name, cfg.seed, cfg.resume) == ("lmtrain", 1337, None)
    assert (cfg.data.order, cfg.data.batch_size, cfg.data.block_size) == ("shuffle", 16, 512)
    assert (cfg.model.n_layer, cfg.model.d_model, cfg.model.n_head, cfg.model.d_ff) == (16, 384, 6, 1536)
    assert (cfg.model.n_kv_head, cfg.model.dropout, cfg.model.vocab_size) == (None, 0.0, 32000)
    assert (cfg.trainer.gradient_accumulation_steps, cfg.trainer.max_steps, cfg.trainer.grad_clip) == (4, 5000, 1.0)
    assert (cfg.trainer.eval_interval, cfg.trainer.eval_batches) == (200, None)
    assert (cfg.trainer.log_interval, cfg.trainer.checkpoint_interval) == (10, 200)
    assert (cfg.optimizer.lr, cfg.optimizer.weight_decay, cfg.optimizer.eps) == (6e-4, 0.1, 1e-8)
    assert cfg.optimizer.betas == [0.9, 0.95]
    assert (cfg.scheduler.warmup_steps, cfg.scheduler.min_lr) == (200, 6e-5)
    assert (cfg.system.device, cfg.system.dtype, cfg.system.compile) == ("auto", "auto", "auto")
    assert cfg.logger.wandb.mode == "offline"


def test_the_production_experiment_equals_the_defaults() -> None:
    default, production = composed(), composed("experiments=production")
    assert isinstance(production, dict)
    assert {**production, "name": "lmtrain"} == default
    written = OmegaConf.load(shipped("experiments") / "production.yaml")
    for key in ("trainer.max_steps", "optimizer.lr", "data.batch_size", "model.vocab_size", "scheduler.warmup_steps"):
        assert OmegaConf.select(written, key) is not None


@pytest.mark.parametrize("path", sorted(shipped("experiments").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_are_deltas(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# @package _global_\n")
    assert "_target_" not in text
    open_keys = ["data.path=x"] if path.stem == "own_text" else []
    check(compose([f"experiments={path.stem}", *open_keys]))


# The keys that a choice leaves for the user to set.
OPEN = {
    "text": ["prepare.source.files=x"],
    "jsonl": ["prepare.source.files=x"],
    "parquet": ["prepare.source.files=x"],
    "huggingface": ["prepare.source.path=x/y"],
    "tokens": ["data.path=x"],
    "mixture": ["data.paths={a: x}", "data.weights={a: 1}"],
}


@pytest.mark.parametrize(
    "choice",
    [
        f"{path.parent.name}={path.stem}"
        for path in sorted(shipped("conf").glob("*/*.yaml"))
        if path.parent.name in GROUPS
    ],
)
def test_every_choice_sets_every_tunable(choice: str) -> None:
    group, _, name = choice.partition("=")
    cfg = check(compose([choice, *OPEN.get(name, ())]))
    nodes = {group: cfg[group]} if group != "data" or cfg.prepare is None else {group: cfg.data, "prepare": cfg.prepare}
    for key, node in nodes.items():
        assert tunables(node._target_, GROUPS[key].positional, GROUPS[key].keywords) == spelled_out(node)


@pytest.mark.parametrize(
    "path", sorted(shipped("conf").glob("prepare/*/*.yaml")), ids=lambda path: f"{path.parent.name}={path.stem}"
)
def test_every_part_of_a_recipe_sets_every_tunable(path: Path) -> None:
    node = OmegaConf.load(path)
    positional = 1 if path.parent.name == "holdout" else 0  # the document
    assert tunables(node._target_, positional) == spelled_out(node)


def tunables(target: str, positional: int, ours: frozenset[str] = frozenset()) -> set[str]:
    from lmtrain.config.signature import signature_of

    names = list(signature_of(target, typed=()).parameters)
    return set(names[positional:]) - ours


def spelled_out(node: Any) -> set[str]:
    return set(node) - {"_target_", "_partial_"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.max_stepz=3"], "trainer.max_stepz=3: unknown key; did you mean trainer.max_steps?"),
        (
            ["max_steps=3"],
            "max_steps=3: unknown key; did you mean trainer.max_steps?",
        ),  # scheduler.max_steps refers to it
        (["experiment=quickstart"], "experiment=quickstart: unknown key; did you mean experiments?"),
        (["+trainer.max_stepz=3"], "trainer.max_stepz=3: unknown key; did you mean trainer.max_steps?"),
        (["optimiser.lr=3"], "optimiser.lr=3: unknown key; did you mean optimizer.lr?"),
        (["system.gpus=8"], "system.gpus=8: unknown key; system has device, dtype, compile, threads, "),
        (["model.bais=true"], "model.bais=true: unknown key; model has vocab_size, "),
        (["model=gpt2", "model.bais=true"], "model.bais=true: unknown key; did you mean model.bias?"),
        (["trainer.grad_accum=2"], "unknown key; did you mean trainer.gradient_accumulation_steps?"),
        (["trainer.lr=1"], "trainer.lr=1: unknown key; did you mean optimizer.lr?"),
        (["lr=1"], "lr=1: unknown key; did you mean optimizer.lr?"),
        (["+nonsense=1"], "nonsense=1: unknown key; there are name, seed"),
        (["optimizer.lr=abc"], "optimizer.lr=abc: input should be a valid number"),
        (["optimizer.lr='3'"], 'optimizer.lr="3": input should be a valid number; the quotes make it text'),
        (['optimizer.lr="1e-3"'], 'optimizer.lr="1e-3": input should be a valid number; the quotes make it text'),
        (['system.compile="false"'], 'system.compile="false": input should be a valid boolean'),
        (["name=1.10"], """; for text, put quotes inside the shell's quotes: 'name="1.1"'"""),
        (["name=1e3"], """name=1000.0: input should be a valid string"""),
        (["data.path=7"], """'data.path="7"'"""),
        (["optimizer.lr=-1"], "optimizer.lr=-1: input should be greater than 0"),
        (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9]: element 1: field required"),
        (["optimizer.betas=[0.9,1.0]"], "optimizer.betas=[0.9, 1]: element 1: input should be less than 1"),
        (["data.batch_size=0"], "data.batch_size=0: input should be greater than 0"),
        (["data.batch_size=true"], "data.batch_size=true: input should be a valid integer"),
        (["data.batch_size=null"], "data.batch_size=null: input should be a valid integer"),
        (["trainer.max_steps=1.5"], "trainer.max_steps=1.5: input should be a valid integer"),
        (["data.order=shufle"], "data.order=shufle: input should be 'shuffle', 'random' or 'sequential'"),
        (["data.split=val"], "unknown key"),
        (["+data.split=val"], "data.split=val: is set by lmtrain itself"),
        (["model=moe_1m", "+model.mlp.d_ff=9"], "model.mlp.d_ff=9: is set by lmtrain itself"),
        (["model=moe_1m", "model.mlp.n_expertz=9"], "did you mean model.mlp.n_expert?"),
        (["system.compile=maybe"], "system.compile=maybe: input should be a valid boolean, or input should be 'auto'"),
        (["model.n_layer={a: 1}"], "model.n_layer={'a': 1}: input should be a valid integer"),
        (["model=llama_5m"], "model=llama_5m: no such choice; did you mean llama_50m?"),
        (
            ["logger=[csv,trakio]"],
            "logger=trakio: no such choice; did you mean trackio? (choices: csv, tensorboard, trackio, wandb)",
        ),
        (["logger=mine"], "logger=mine: no such choice (choices: csv, tensorboard, trackio, wandb)"),
        (["experiments=smok"], "experiments=smok: no such choice; did you mean smoke?"),
        (["model._target_=lmtrain.model.llama.Lama"], "lmtrain.model.llama has no 'Lama'; did you mean 'Llama'?"),
        (["model._target_=nowhere.Mine"], "model._target_=nowhere.Mine: no module 'nowhere'"),
        (["~model._target_"], "needs a _target_"),
        (["~optimizer.lr"], "optimizer.lr"),
        (["prepare.tokenizer.vocab=3"], "unknown key; did you mean prepare.tokenizer.vocab_size?"),
        (["logger.wandb.mode=onlin"], "logger.wandb.mode=onlin: input should be 'offline', 'online' or 'disabled'"),
        (["seed=-1"], "seed=-1: input should be greater than or equal to 0"),
        (["seed=18446744073709551616"], "seed=18446744073709551616: input should be less than 9223372036854775808"),
        (["optimizer.lr=inf"], "optimizer.lr=inf: input should be a finite number"),
        (["+model.foo=1"], "model.foo=1: unknown key; there are vocab_size"),
        (["optimizer@optimizer=adamw"], "optimizer@optimizer=adamw: unknown key"),
        (["trainer=null"], "trainer=null: this group needs a choice"),
        (["system.device=tpu"], "system.device=tpu: input should be 'auto', 'cpu' or 'cuda', or string should match"),
        (["~scheduler._partial_"], "scheduler.step: is missing"),
        (["data=text"], "prepare.source.files: is missing; give prepare.source.files=VALUE"),
        (["optimizer.lr=1,2"], "optimizer.lr=1,2: has several values; give one, or train with -m"),
        (["+logger._target_=x.Y"], "logger: must contain each logger under its own name"),
        (["optimizer.lr=["], "optimizer.lr=[: not a valid override"),
        (["optimizer.lr=${trainer.nothing}"], "optimizer.lr"),
    ],
)
def test_mistakes(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose(overrides))
    assert message in str(caught.value)


def test_all_mistakes_are_reported_at_once_and_a_shared_value_only_once() -> None:
    with pytest.raises(ConfigError) as caught:
        check(compose(["optimizer.lr=abc", "+trainer.foo=1", "data.batch_size=0"]))
    lines = str(caught.value).splitlines()
    assert [re.split("[=:]", line)[0] for line in lines] == ["data.batch_size", "optimizer.lr", "trainer.foo"]


def test_text_from_an_environment_variable_is_reported_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RATE", "2e-3")
    with pytest.raises(ConfigError) as caught:
        check(compose(["optimizer.lr=${oc.env:RATE}"]))
    (line,) = str(caught.value).splitlines()
    assert line == (
        'optimizer.lr="2e-3": input should be a valid number; an environment variable is text; '
        'convert it with "${oc.decode:${oc.env:RATE}}"'
    )
    assert check(compose(['optimizer.lr="${oc.decode:${oc.env:RATE}}"'])).scheduler.lr == 2e-3


def test_numbers_are_converted_to_the_declared_type() -> None:
    cfg = check(compose(["trainer.max_steps=1e2", "optimizer.weight_decay=0"]))
    assert cfg.trainer.max_steps == 100
    assert isinstance(cfg.trainer.max_steps, int)
    assert isinstance(cfg.optimizer.weight_decay, float)
    assert cfg.scheduler.max_steps == 100


def test_an_unknown_key_in_an_experiment_file_is_an_error() -> None:
    folder = Path("experiments")
    folder.mkdir()
    (folder / "mine.yaml").write_text("# @package _global_\nname: mine\nbatch_sise: 3\n")
    with pytest.raises(ConfigError, match="batch_sise=3: unknown key"):
        check(compose(["experiments=mine"]))


def test_an_unknown_group_in_an_experiment_file_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "experiments").mkdir()
    experiment = "# @package _global_\ndefaults:\n  - override /optimiser: adamw\n"
    (tmp_path / "experiments" / "mine.yaml").write_text(experiment, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"^In 'experiments/mine': Could not override 'optimiser'\. No match in"):
        compose(["experiments=mine"])


def test_a_users_own_model_trains_and_is_protected_by_its_signature(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    write_my_model(tmp_path)
    mine = [text for text in TINY if not text.startswith("model")]
    common = [*mine, "model=mine", f"data.path={token_folder}", "hydra.run.dir=out"]
    done = cli(*common, "model.scale=2")
    assert done.returncode == 0, done.stderr
    assert "model Mine: 3,782 parameters" in done.stdout
    for override, message in (
        ("+model.scael=1", "model.scael=1: unknown key; did you mean model.scale?"),
        ("model.scale=big", "model.scale=big: input should be a valid number"),
        ("+model.bias=3", "model.bias=3: input should be a valid boolean"),
    ):
        done = cli(*common, override)
        assert (done.returncode, done.stderr.strip()) == (2, f"config error: {message}")


def test_a_users_conf_shadows_the_shipped_one() -> None:
    folder = Path("conf", "optimizer")
    folder.mkdir(parents=True)
    shadow = (
        (shipped("conf") / "optimizer" / "adamw.yaml").read_text().replace("weight_decay: 0.1", "weight_decay: 0.3")
    )
    (folder / "adamw.yaml").write_text(shadow)
    assert check(compose([])).optimizer.weight_decay == 0.3


def test_command_line_errors_are_short_and_fast(cli: Cli, tmp_path: Path) -> None:
    for overrides in (
        ["trainer.max_stepz=3"],
        ["data=tokens", "data.path=nowhere"],
        ["trian"],
        ["-m", "optimizer.lr=1,abc"],
    ):
        done = cli(*overrides)
        assert done.returncode == 2
        assert done.stderr.startswith("config error: ")
        assert "Traceback" not in done.stderr + done.stdout
        assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []  # nothing was created


def test_missing_data_lists_the_existing_folders(token_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.path=data/typo: no such folder; data has tiny"):
        preflight(compose(["data=tokens", "data.path=data/typo"]))


def test_the_vocabulary_is_taken_from_the_data_or_is_large_enough(token_folder: Path) -> None:
    path = f"data.path={token_folder}"
    assert preflight(compose(["data=tokens", path, "model=llama_1m"])).model.vocab_size == 61
    assert preflight(compose(["data=tokens", path])).model.vocab_size == 32000
    with pytest.raises(ConfigError, match=r"model.vocab_size=60: .* needs at least 61"):
        preflight(compose(["data=tokens", path, "model.vocab_size=60"]))
    (token_folder / "meta.json").unlink()
    with pytest.raises(ConfigError, match=r"model.vocab_size=null: .* give a number"):
        preflight(compose(["data=tokens", path, "model=llama_1m"]))


@pytest.mark.parametrize("model", ["llama_1m", "gpt2"])
def test_documents_are_masked_with_the_end_of_text_id_of_the_data(token_folder: Path, model: str) -> None:
    def settled(*overrides: str) -> DictConfig:
        return preflight(compose(["data=tokens", f"data.path={token_folder}", f"model={model}", *overrides])).model

    assert settled().mask_documents is False
    assert settled().end_of_text is None
    masks = "model.mask_documents=true"
    with pytest.raises(ConfigError, match=r"^model.end_of_text=null: .*tiny has no end-of-text id .*; give a number"):
        settled(masks)
    assert settled(masks, "model.end_of_text=10").end_of_text == 10  # such as the newline of a character tokenizer

    meta = read_meta(token_folder)
    assert meta is not None
    write_meta(token_folder, replace(meta, end_of_text=7))
    assert settled().end_of_text is None
    assert settled(masks).end_of_text == 7
    small = ("model.n_layer=1", "model.n_head=2", "model.d_model=32", "model.d_ff=64")
    assert build(settled(masks, *small)).end_of_text == 7
    with pytest.raises(ConfigError, match=r"^model.end_of_text=-1: input should be greater than or equal to 0"):
        settled(masks, "model.end_of_text=-1")

    (token_folder / "meta.json").unlink()
    with pytest.raises(ConfigError, match=r"^model.end_of_text=null: .* has no meta.json .*; give a number"):
        settled(masks, "model.vocab_size=61")


MY_PARTS = """
class Activation:
    def __init__(self, slope: float = 0.1):
        self.slope = slope


class Holder:
    def __init__(self, activations: list[Activation], steps: list[int]):
        self.activations, self.steps = activations, steps


class Rate:
    def __init__(self, lr: float, warmup: int):
        self.lr = lr

    def __call__(self, step):
        return self.lr
"""


def test_parts_in_lists_are_checked_and_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "myparts.py").write_text(MY_PARTS)
    part = "{_target_: myparts.Activation, slope: 0.2}"
    (tmp_path / "conf" / "model").mkdir(parents=True)
    mine = tmp_path / "conf" / "model" / "mine.yaml"
    mine.write_text(f"_target_: myparts.Holder\nactivations: [{part}]\nsteps: [1e3, 2]\n")
    built = build(check(compose(["model=mine"])).model)
    assert built.activations[0].slope == 0.2
    assert built.steps == [1000, 2]
    mine.write_text(mine.read_text().replace("slope", "slop"))
    with pytest.raises(ConfigError, match=r"model.activations.0.slop=0.2: unknown key; did you mean model.*slope\?"):
        check(compose(["model=mine"]))


def test_a_scheduler_may_be_a_callable_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "myrates.py").write_text(MY_PARTS)
    (tmp_path / "conf" / "scheduler").mkdir(parents=True)
    (tmp_path / "conf" / "scheduler" / "mine.yaml").write_text("_target_: myrates.Rate\nlr: 0.5\nwarmup: 3\n")
    assert build(check(compose(["scheduler=mine"])).scheduler)(7) == 0.5


def test_resume_is_accepted_only_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match="resume=old: can't be set in a config"):
        preflight(compose(["++resume=old"]))


class Takes:
    """An object that shows the arguments it was built with."""

    def __init__(self, values: list[int], table: dict[str, int], state: object) -> None:
        self.values, self.table, self.state = values, table, state


def test_build_passes_plain_containers_and_the_objects_themselves() -> None:
    cfg = OmegaConf.create({"_target_": f"{__name__}.Takes", "values": [1, 2], "table": {"a": 1}})
    state = object()
    sys.modules.setdefault(__name__, sys.modules[Takes.__module__])
    built = build(cfg, state=state)
    assert type(built.values) is list
    assert type(built.table) is dict
    assert built.state is state
