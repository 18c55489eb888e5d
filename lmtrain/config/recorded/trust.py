"""Checks the code and environment variables that a saved config names, so that its author can't run code or read them.

A `_target_` is imported and called, and `${oc.env:…}` reads an environment variable. From a run's folder, these are
accepted only if lmtrain ships them, the user's own `./conf` or `./experiments` name them, or the command trusts them.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from omegaconf.grammar_parser import parse

from lmtrain.checkpoint.steps import CHECKPOINTS
from lmtrain.config.recorded.interpolation_size import check_resolved_size
from lmtrain.config.shipped import shipped
from lmtrain.errors import ConfigError
from lmtrain.files.limited import MAX_YAML_BYTES, read_limited, read_yaml_text
from lmtrain.terminal.as_text import shown

CONFIG = "config.yaml"  # the config of a run
EXPERIMENTS = "experiments"  # a config group and its folder
PLUGIN = re.compile(r"(hydra_plugins|hydra\._internal\.core_plugins)\.[\w.]+")  # installed plugins
LMTRAIN_VARIABLE = re.compile(r"oc\.env:LMTRAIN_\w+(,.*)?")
MAX_INTERPOLATIONS = 20  # in one string; OmegaConf's parser needs seconds for thousands of nested ones
MAX_IN_A_FILE = 5_000
TASKS_CODE = "lm_eval"  # what to trust, for a run whose config names tasks of the harness
TASKS_FOLDER = "eval_tasks_folder"  # of the trainer: where their code is


def check_trust(
    cfg: DictConfig,
    trusted: Collection[str],
    run_dir: Path,
    *,
    folder: Path | None = None,
    option: str = "trust=",
) -> None:
    """Check that everything is allowed that a run's config would import, call or look up.

    This imports nothing, so call it before the config is checked or built. Texts that become an interpolation only when
    they are resolved (because it is escaped, or put together from two) are refused, as they would be looked up later.

    Args:
        cfg: The saved config, unresolved.
        trusted: Names that the command trusts.
        run_dir: The saved run.
        folder: The folder in which the command was started; None for the current one.
        option: The option with which the command trusts a name, for the message.

    Raises:
        ConfigError: A `_target_` or a resolver call is neither in lmtrain's conf nor in the user's own nor in
            `trusted`, or a value can't be resolved or hides an interpolation.
    """
    if "hydra" in cfg:
        raise ConfigError(f"{run_dir}: its config has the key hydra, which would set Hydra itself; no run writes that")
    allowed = {*trusted, *_shipped_names(), *_own_names(folder or Path.cwd(), run_dir)}
    refused = [
        f"{run_dir}: {shown(key)}={shown(name)}: is named in the run's config, but neither by lmtrain nor by your own "
        f"conf, and could run code or read your settings; if you trust it, add {option}{shlex.quote(name)}"
        for key, name in _names(OmegaConf.to_container(cfg))
        if name not in allowed and not LMTRAIN_VARIABLE.fullmatch(name)
    ]
    if refused:
        raise ConfigError("\n".join(dict.fromkeys(refused)))
    try:
        check_resolved_size(OmegaConf.to_container(cfg))
        resolved = OmegaConf.to_container(cfg, resolve=True)
    except (OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{run_dir}: {shown(str(error).splitlines()[0])}") from error
    for key, text in _texts(resolved):
        if "${" in text:
            raise ConfigError(f"{run_dir}: {shown(key)}={shown(text)}: hides an interpolation; no run writes that")


def check_task_trust(cfg: DictConfig, trusted: Collection[str], run_dir: Path) -> None:
    """Check that a command that trains with a run's config may run the tasks that it names, which are code.

    Raises:
        ConfigError: The config names tasks of the harness or their folder, and `trusted` does not list `lm_eval`.
    """
    if _has_tasks(cfg) and TASKS_CODE not in trusted:
        raise ConfigError(
            f"{run_dir}: trainer.eval_tasks: the tasks in the run's config are code; if you trust their files, add "
            f"trust={TASKS_CODE}; or set trainer.eval_tasks=null or your own trainer.{TASKS_FOLDER} in a fork"
        )


def _has_tasks(cfg: DictConfig) -> bool:
    trainer: Any = OmegaConf.to_container(cfg).get("trainer")  # type: ignore[union-attr]
    return isinstance(trainer, dict) and bool(trainer.get("eval_tasks") or trainer.get(TASKS_FOLDER))


def check_hydra_trust(settings: DictConfig, trusted: Collection[str], run_dir: Path) -> None:
    """Check everything that Hydra itself would import, call or look up when the choices of a saved run are composed.

    Hydra's settings come from the user's own configs, so this only finds names that got there in another way.

    Raises:
        ConfigError: A `_target_` or a resolver call is neither in lmtrain's or the user's configs, nor a plugin, nor in
            `trusted`.
    """
    own = [name for folder in ("conf", EXPERIMENTS) for name in _names_below(Path(folder), run_dir, of_hydra=True)]
    allowed = {*trusted, *_shipped_hydra_names(), *_own_names(Path.cwd(), run_dir), *own}
    for key, name in _names(OmegaConf.to_container(settings), "hydra"):
        if name not in allowed and not PLUGIN.fullmatch(name) and not LMTRAIN_VARIABLE.fullmatch(name):
            raise ConfigError(
                f"{run_dir}: {shown(key)}={shown(name)}: comes from the run's choices, but neither lmtrain nor your "
                f"own conf and experiments name it; if you trust it, add trust={shlex.quote(name)}"
            )


def names_that_need_trust(cfg: DictConfig, *, also_allowed: Collection[str] = ()) -> list[str]:
    """Return the names in an unresolved config for which a resume of its run would need `trust`."""
    names = dict.fromkeys(name for _, name in _names(OmegaConf.to_container(cfg)))
    allowed = {*_shipped_names(), *also_allowed}
    found = [name for name in names if name not in allowed and not LMTRAIN_VARIABLE.fullmatch(name)]
    return [*found, TASKS_CODE] if _has_tasks(cfg) else found


def names_to_trust_again(path: Path, run_dir: Path, folder: Path) -> list[str]:
    """Return the names in a run's config file that a command in `folder` must trust."""
    return names_that_need_trust(read_saved(path), also_allowed=_own_names(folder, run_dir))


def read_saved(path: Path) -> DictConfig:
    """Return the unresolved content of a YAML file that OmegaConf wrote into a run's folder.

    Raises:
        ConfigError: The file is missing, is not such a file, or is made to exhaust the memory.
    """
    try:
        text = read_yaml_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    try:
        # Only strings matter, so parse if the file has many interpolations, or escapes that may hide some ("\x24{").
        if text.count("${") > MAX_INTERPOLATIONS or "\\" in text:
            total = 0
            for _, string in _texts(yaml.safe_load(text)):
                total += (count := string.count("${"))
                if count > MAX_INTERPOLATIONS:
                    raise ConfigError(f"{path}: {shown(string)}: is not an interpolation that can be read")
            if total > MAX_IN_A_FILE:
                raise ConfigError(f"{path}: has {total:,} interpolations, more than a config ever has")
        cfg = OmegaConf.create(text)
    except ConfigError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not the YAML of a config ({shown(str(error))})") from error
    if not isinstance(cfg, DictConfig) or not cfg:
        raise ConfigError(f"{path}: is not the YAML of a config")
    return cfg


def read_resolved(path: Path) -> DictConfig:
    """Return the resolved config of a run, in which nothing (such as an environment variable) is left to look up.

    Raises:
        ConfigError: The file can't be read (see `read_saved`), or has an interpolation, which no run writes.
    """
    cfg = read_saved(path)
    for key, text in _texts(OmegaConf.to_container(cfg)):
        if "${" in text:
            raise ConfigError(f"{path}: {shown(key)}={shown(text)}: is an interpolation, which no run writes")
    return cfg


def _names(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the name of every `_target_` and resolver call, such as `mymodels.Bigram` or `oc.env:HOME`.

    Raises:
        ConfigError: A `_target_` is not a name, or an interpolation can't be read.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if key != "_target_":
                yield from _names(value, here)
            elif isinstance(value, str) and "${" not in value:
                yield here, value
            else:
                raise ConfigError(f"{shown(here)}={shown(str(value))}: is not the dotted path of a class or function")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _names(value, f"{path}.{index}")
    elif isinstance(node, str) and "${" in node:
        for call in _calls(node, path):
            yield path, call


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield all strings, including keys, with their paths."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield path, str(key)
            yield from _texts(value, f"{path}.{key}".lstrip("."))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _texts(value, f"{path}.{index}")
    elif isinstance(node, str):
        yield path, node


def _calls(text: str, path: str) -> list[str]:
    """Return all resolver calls in a string, including nested ones, without white space: `oc.env:HOME`.

    They are found with OmegaConf's own parser, so that they are exactly the calls that OmegaConf would make.
    """
    try:
        if text.count("${") > MAX_INTERPOLATIONS:
            raise RecursionError
        nodes = [parse(text)]
    except (GrammarParseError, RecursionError) as error:
        raise ConfigError(f"{shown(path)}={shown(text)}: is not an interpolation that can be read") from error
    calls = []
    while nodes:
        node = nodes.pop()
        if type(node).__name__ == "InterpolationResolverContext":
            calls.append("".join(node.getText().split())[2:-1])  # without ${ and }
        nodes.extend(getattr(node, "children", None) or ())
    return calls


@cache
def _shipped_names() -> frozenset[str]:
    return frozenset(_names_below(shipped("conf"), shipped("conf") / "hydra"))


@cache
def _shipped_hydra_names() -> frozenset[str]:
    conf, experiments = shipped("conf"), shipped("experiments")
    settings = [name for folder in (conf, experiments) for name in _names_below(folder, None, of_hydra=True)]
    return frozenset([*settings, *_names_below(conf / "hydra", None)])


def _own_names(folder: Path, run_dir: Path) -> set[str]:
    """Return the names in the user's own configs, without those in run directories among them."""
    return {name for own in ("conf", "experiments") for name in _names_below(folder / own, run_dir)}


def lies_in_a_run(group: str, name: str, run_dir: Path) -> bool:
    """Return whether a choice is a config in `./conf` or `./experiments` that is inside this or another run."""
    folder = Path.cwd()
    config = Path(group, f"{name.removesuffix('.yaml')}.yaml")
    own = [folder / "conf" / config]
    if config.parts[0] == EXPERIMENTS:
        own.append(folder / config)
    for path in filter(Path.is_file, own):
        above = [parent for parent in path.parents if parent.is_relative_to(folder) and parent != folder]
        if path.resolve().is_relative_to(run_dir.resolve()) or any(_is_run_folder(each, run_dir) for each in above):
            return True
    return False


def _is_run_folder(folder: Path, run_dir: Path | None) -> bool:
    inside = run_dir is not None and folder.resolve().is_relative_to(run_dir.resolve())
    return inside or (folder / ".hydra").is_dir() or all((folder / name).exists() for name in (CHECKPOINTS, CONFIG))


def _names_below(folder: Path, without: Path | None, *, of_hydra: bool = False) -> Iterator[str]:
    """Yield the names in a folder's configs, except in run directories; with `of_hydra`, only those under `hydra`."""
    for root, folders, files in os.walk(folder.resolve()):
        if _is_run_folder(Path(root), without):
            folders.clear()
            continue
        for file in files:
            if not file.endswith((".yaml", ".yml")):
                continue
            try:
                content = yaml.safe_load(read_limited(Path(root) / file, MAX_YAML_BYTES))
                settings = content.pop("hydra", None) if isinstance(content, dict) else None
                yield from [name for _, name in _names(settings if of_hydra else content)]
            except (OSError, yaml.YAMLError, ValueError, RecursionError):
                continue  # an unreadable file names nothing; composing from it reports the mistake
