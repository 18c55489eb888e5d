"""Tests of the names that a saved config may contain, and of the limits for reading it."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from lmtrain.config.compose import compose
from lmtrain.config.recorded.trust import check_trust, read_saved
from lmtrain.errors import ConfigError
from lmtrain.files.limited import MAX_YAML_BYTES

LLAMA = {"_target_": "lmtrain.model.llama.Llama", "_recursive_": True, "_convert_": "all", "_partial_": False}


def check(container: Any, folder: Path, trusted: tuple[str, ...] = ()) -> None:
    saved = folder / "saved.yaml"
    saved.write_text(json.dumps(container))  # JSON is also YAML
    check_trust(read_saved(saved), trusted, folder / "outputs" / "run", folder=folder)


def test_every_shipped_choice_is_trusted(tmp_path: Path) -> None:
    for overrides in ([], ["data=mixture", "model=gpt2"], ["experiments=shakespeare_char"], ["data=parquet"]):
        check(OmegaConf.to_container(compose(overrides)), tmp_path)


@pytest.mark.parametrize(
    ("node", "named"),
    [
        ({"_target_": "os.system"}, "model._target_=os.system"),
        ({**LLAMA, "part": {"_target_": "os.system", "_partial_": True}}, "model.part._target_=os.system"),
        ({**LLAMA, "parts": [1, [{"_target_": "os.system"}]]}, "model.parts.1.0._target_=os.system"),
        ({**LLAMA, "plain": {"deep": {"_target_": "lmtrain.files.lock.locked_folder"}}}, "model.plain.deep._target_="),
        ({"_target_": 3}, "model._target_=3: is not the dotted path"),
        ({"_target_": ["os.system"]}, "model._target_=['os.system']: is not the dotted path"),
        ({"_target_": "${name}"}, "model._target_=${name}: is not the dotted path"),
    ],
)
def test_a_target_named_only_by_the_run_is_refused(node: Any, named: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        check({"name": "os.system", "model": node, "system": LLAMA}, tmp_path)
    assert named in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1


def test_a_target_is_trusted_by_name_or_through_the_users_own_config(tmp_path: Path) -> None:
    mine = {"model": {"_target_": "mymodels.Bigram"}, "logger": {"x": {"_target_": "mylog.Mine"}}}
    with pytest.raises(ConfigError) as raised:
        check(mine, tmp_path)
    assert "if you trust it, add trust=mymodels.Bigram\n" in str(raised.value)
    check(mine, tmp_path, ("mymodels.Bigram", "mylog.Mine"))
    with pytest.raises(ConfigError, match=r"add --trust mylog\.Mine"):
        check_trust(OmegaConf.create(mine), ["mymodels.Bigram"], tmp_path / "run", folder=tmp_path, option="--trust ")
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "bigram.yaml").write_text("_target_: mymodels.Bigram\n")
    (tmp_path / "conf" / "broken.yaml").write_text("{")
    (tmp_path / "experiments").mkdir()
    experiment = "# @package _global_\nlogger:\n  x: {_target_: mylog.Mine}\n# _target_: os.system\n"
    (tmp_path / "experiments" / "mine.yaml").write_text(experiment)
    check(mine, tmp_path)
    with pytest.raises(ConfigError, match=r"os\.system"):
        check({"model": {"_target_": "os.system"}}, tmp_path)


@pytest.mark.parametrize("where", ["experiments/study/run", "conf"])
def test_configs_inside_a_run_do_not_make_it_trusted(where: str, tmp_path: Path) -> None:
    run_dir = tmp_path / where
    run_dir.mkdir(parents=True)
    (run_dir / "config.yaml").write_text("model: {_target_: os.system}\n")
    with pytest.raises(ConfigError, match=r"os\.system"):
        check_trust(OmegaConf.create({"model": {"_target_": "os.system"}}), (), run_dir, folder=tmp_path)
    another = tmp_path / "experiments" / "study" / "another"
    (another / ".hydra").mkdir(parents=True)
    (another / "config.yaml").write_text("model: {_target_: os.popen}\n")
    with pytest.raises(ConfigError, match=r"os\.popen"):
        check_trust(OmegaConf.create({"model": {"_target_": "os.popen"}}), (), run_dir, folder=tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "a ${ oc.env : HOME } b",
        "${oc.env:\tHOME}",
        "${oc.env:HOME,LMTRAIN_DATA}",
        "${oc.env:LMTRAIN_DATA,${oc.env:HOME}}",
        "${oc.select:'${oc.env:HOME}',1}",
        "${${oc.env:HOME}}",
        "${name[${oc.env:HOME}]}",
        "${${name}:HOME}",
        "${oc.select:nothing,{_target_: os.system}}",  # turns a string into a node
        "${oc.create:{_target_: os.system}}",
        "${oc.decode:name}",
        "${hydra:runtime.cwd}",
        "${oc.env:HOME",
        "${" * 3000 + "name" + "}" * 3000,
        "${name}" * 3000,
    ],
)
def test_a_resolver_call_made_only_by_the_run_is_refused(text: str, tmp_path: Path) -> None:
    for value in (text, [text], {"x": [text]}):
        with pytest.raises(ConfigError, match=r"add trust=|not an interpolation|not the YAML"):
            check({"name": "x", "data": {"path": value}}, tmp_path)


def test_plain_interpolations_and_lmtrains_own_variables_are_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SCRATCH", "/scratch")
    check({"a": "${b.c} ${oc.env:LMTRAIN_DATA,data}/x $ {}", "b": {"c": 1}}, tmp_path)
    mine = {"data": {"path": "${oc.env:SCRATCH}/tokens"}}
    with pytest.raises(ConfigError, match=r"add trust=oc\.env:SCRATCH$"):
        check(mine, tmp_path)
    check(mine, tmp_path, ("oc.env:SCRATCH",))
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "data.yaml").write_text("path: ${oc.env:SCRATCH}/other\n")
    check(mine, tmp_path)


def test_the_key_hydra_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="its config has the key hydra, which would set Hydra itself"):
        check({"name": "x", "hydra": {"callbacks": {}}}, tmp_path)


def test_a_name_does_not_control_the_terminal(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        check({"a\x1b[2J": {"_target_": "x" * 100_000}}, tmp_path)
    assert "\x1b" not in str(raised.value)


def test_configs_written_by_omegaconf_are_read_back(tmp_path: Path) -> None:
    cfg = compose(["data=mixture"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(cfg))
    assert read_saved(tmp_path / "config.yaml") == cfg


def bomb() -> str:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    return "\n".join([*lines, *(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 4))])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), "has an alias"),
        ("a: &x {b: 1}\nc: {<<: *x}", "has an alias"),
        ("[" * 2000, "nested more than 50 deep"),
        ("a: {" * 60 + "}" * 60, "nested more than 50 deep"),
        ("a: " + "x" * MAX_YAML_BYTES, "larger than 1,000,000 bytes"),
        ("a: 1" + "0" * 5000, "not the YAML of a config"),
        ("a: [1", "not the YAML of a config"),
        ("- 1", "not the YAML of a config"),
        ("", "not the YAML of a config"),
        ("a: !!python/object/apply:os.system [touch owned]", "not the YAML of a config"),
        ("a: !!python/name:os.system", "not the YAML of a config"),
        ("a: !!set {b}", "not the YAML of a config"),
        ("a: " + "${b}" * 30, "not an interpolation that can be read"),
        ('a: "' + r"\x24{b}" * 30 + '"', "not an interpolation that can be read"),
        ("a: 1\n" + "\n".join(f"b{number}: ${{a}}" for number in range(5001)), "has 5,001 interpolations"),
    ],
)
def test_any_other_yaml_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_saved(path)
    assert message in str(raised.value)
    assert str(path) in str(raised.value)
    assert len(str(raised.value)) < 1000
    assert os.listdir(tmp_path) == ["config.yaml"]


@pytest.mark.parametrize(
    "hidden",
    [
        {"name": "\\${oc.env:HOME}"},
        {"name": "\\\\\\${oc.env:HOME}"},
        {"seed": "$", "name": "${seed}{oc.env:HOME}"},
        {"model": {"deep": ["\\${oc.create:{_target_: os.mkdir, path: x}}"]}},
        {"a": "${b}", "b": "\\${oc.env:HOME}"},
    ],
)
def test_an_interpolation_that_appears_only_when_the_config_is_resolved_is_refused(hidden: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"hides an interpolation"):
        check(hidden, tmp_path)


def test_interpolations_that_grow_without_bound_are_not_resolved(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run: a\d+: resolving its interpolations would take too long$"):
        check({f"a{number}": f"${{a{number + 1}}}${{a{number + 1}}}" for number in range(30)} | {"a30": ""}, tmp_path)
