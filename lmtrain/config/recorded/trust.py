"""What the config of a saved run may name: whoever wrote the folder should not choose what this process runs or reads.

A `_target_` is imported and called, and `${oc.env:…}` reads the environment. From a run's folder come only those that
lmtrain ships, that the user's own `./conf` and `./experiments` name, or that the command trusts by name.
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

CONFIG = "config.yaml"  # of a run
EXPERIMENTS = "experiments"  # a config group, and a folder
PLUGIN = re.compile(r"(hydra_plugins|hydra\._internal\.core_plugins)\.[\w.]+")  # installed; Hydra takes no others
LMTRAIN_VARIABLE = re.compile(r"oc\.env:LMTRAIN_\w+(,.*)?")
MAX_INTERPOLATIONS = 20  # in one string; OmegaConf's parser takes seconds for thousands, one in another
MAX_IN_A_FILE = 5_000


def check_trust(
    cfg: DictConfig,
    trusted: Collection[str],
    run_dir: Path,
    *,
    folder: Path | None = None,
    option: str = "trust=",
) -> None:
    """Check that everything that a run's config would import, call or look up is allowed.

    This imports nothing, so it comes before the config is checked or built. What becomes an interpolation only when it
    is resolved (an escaped one, or one put together from two) is refused: it would be looked up later. `folder` is
    the one that the command is given in (default: the current one), and `option` how the command trusts a name, for
    the message.

    Raises:
        ConfigError: a `_target_` or a resolver call that neither lmtrain's conf nor the user's own has, nor `trusted`;
            values that can't be resolved, or hide an interpolation.
    """
    if "hydra" in cfg:
        raise ConfigError(f"{run_dir}: its config has a key hydra, which no run's own has: it would set Hydra itself")
    allowed = {*trusted, *_shipped_names(), *_own_names(folder or Path.cwd(), run_dir)}
    refused = [
        f"{run_dir}: {shown(key)}={shown(name)}: the run's config names it, but neither lmtrain nor your own conf "
        f"does, and it would run code or read settings of yours; if you trust it, add {option}{shlex.quote(name)}"
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
            raise ConfigError(f"{run_dir}: {shown(key)}={shown(text)}: hides an interpolation, which no run writes")


def check_hydra_trust(settings: DictConfig, trusted: Collection[str], run_dir: Path) -> None:
    """Check what Hydra itself would import, call or look up, where the choices of a saved run are composed.

    Its settings come from the user's own configs, so this finds only what got there in another way.

    Raises:
        ConfigError: a `_target_` or a resolver call that is neither in a config of lmtrain's or the user's own, nor a
            plugin's, nor `trusted`.
    """
    own = [name for folder in ("conf", EXPERIMENTS) for name in _names_below(Path(folder), run_dir, of_hydra=True)]
    allowed = {*trusted, *_shipped_hydra_names(), *_own_names(Path.cwd(), run_dir), *own}
    for key, name in _names(OmegaConf.to_container(settings), "hydra"):
        if name not in allowed and not PLUGIN.fullmatch(name) and not LMTRAIN_VARIABLE.fullmatch(name):
            raise ConfigError(
                f"{run_dir}: {shown(key)}={shown(name)}: comes with what the run chooses, but neither lmtrain nor "
                f"your own conf and experiments name it; if you trust it, add trust={shlex.quote(name)}"
            )


def names_that_need_trust(cfg: DictConfig, *, also_allowed: Collection[str] = ()) -> list[str]:
    """Return the names in an unresolved config that a resume of its run would refuse without `trust`."""
    names = dict.fromkeys(name for _, name in _names(OmegaConf.to_container(cfg)))
    allowed = {*_shipped_names(), *also_allowed}
    return [name for name in names if name not in allowed and not LMTRAIN_VARIABLE.fullmatch(name)]


def names_to_trust_again(path: Path, run_dir: Path, folder: Path) -> list[str]:
    """Return the names in a config file of a run that a command given in `folder` has to trust."""
    return names_that_need_trust(read_saved(path), also_allowed=_own_names(folder, run_dir))


def read_saved(path: Path) -> DictConfig:
    """Return the content of a YAML file that OmegaConf wrote into a run's folder, unresolved.

    Raises:
        ConfigError: it is not there, not such a file, or made to exhaust the memory.
    """
    try:
        text = read_yaml_text(path)
    except (OSError, ValueError) as error:
        raise ConfigError(str(error)) from error
    try:
        # In the whole file; are they in one string? After a backslash, as in "\x24{", none is seen in the text itself.
        if text.count("${") > MAX_INTERPOLATIONS or "\\" in text:
            total = 0
            for _, string in _texts(yaml.safe_load(text)):
                total += (count := string.count("${"))
                if count > MAX_INTERPOLATIONS:
                    raise ConfigError(f"{path}: {shown(string)}: not an interpolation that can be read")
            if total > MAX_IN_A_FILE:
                raise ConfigError(f"{path}: has {total:,} interpolations, more than a config ever has")
        cfg = OmegaConf.create(text)
    except ConfigError:
        raise
    except (yaml.YAMLError, OmegaConfBaseException, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not the YAML of a config ({shown(str(error))})") from error
    if not isinstance(cfg, DictConfig) or not cfg:
        raise ConfigError(f"{path}: not the YAML of a config")
    return cfg


def read_resolved(path: Path) -> DictConfig:
    """Return the resolved config of a run, in which nothing is left to look up: not the environment, for example.

    Raises:
        ConfigError: as `read_saved`; or it has an interpolation, which no run writes.
    """
    cfg = read_saved(path)
    for key, text in _texts(OmegaConf.to_container(cfg)):
        if "${" in text:
            raise ConfigError(f"{path}: {shown(key)}={shown(text)}: an interpolation, which no run writes")
    return cfg


def _names(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield every key with a `_target_` or a resolver call, and that: `mymodels.Bigram`, `oc.env:HOME`.

    Raises:
        ConfigError: a `_target_` that is no name, an interpolation that can't be read.
    """
    if isinstance(node, dict):
        for key, value in node.items():
            here = f"{path}.{key}" if path else str(key)
            if key != "_target_":
                yield from _names(value, here)
            elif isinstance(value, str) and "${" not in value:
                yield here, value
            else:
                raise ConfigError(f"{shown(here)}={shown(str(value))}: not the dotted path of a class or function")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _names(value, f"{path}.{index}")
    elif isinstance(node, str) and "${" in node:
        for call in _calls(node, path):
            yield path, call


def _texts(node: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield all strings, keys among them, with their paths."""
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
    """Return the resolver calls in a string, also those within others, without white space: `oc.env:HOME`.

    OmegaConf's own parser finds them: what it takes for a call, and nothing else, is one.
    """
    try:
        if text.count("${") > MAX_INTERPOLATIONS:
            raise RecursionError
        nodes = [parse(text)]
    except (GrammarParseError, RecursionError) as error:
        raise ConfigError(f"{shown(path)}={shown(text)}: not an interpolation that can be read") from error
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
    """Return the names in the user's own configs, without those of runs that happen to lie among them."""
    return {name for own in ("conf", "experiments") for name in _names_below(folder / own, run_dir)}


def lies_in_a_run(group: str, name: str, run_dir: Path) -> bool:
    """Return whether a choice is a config in `./conf` or `./experiments` that lies in the run, or in another run."""
    folder = Path.cwd()
    config = Path(group, f"{name.removesuffix('.yaml')}.yaml")
    own = [folder / "conf" / config]
    if config.parts[0] == EXPERIMENTS:
        own.append(folder / config)
    for path in filter(Path.is_file, own):
        above = [parent for parent in path.parents if parent.is_relative_to(folder) and parent != folder]
        if path.resolve().is_relative_to(run_dir.resolve()) or any(_is_run_folder(one, run_dir) for one in above):
            return True
    return False


def _is_run_folder(folder: Path, run_dir: Path | None) -> bool:
    inside = run_dir is not None and folder.resolve().is_relative_to(run_dir.resolve())
    return inside or (folder / ".hydra").is_dir() or all((folder / name).exists() for name in (CHECKPOINTS, CONFIG))


def _names_below(folder: Path, without: Path | None, *, of_hydra: bool = False) -> Iterator[str]:
    """Return the names in the configs in a folder, but for runs' own; `of_hydra`: those in their settings of Hydra."""
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
                continue  # it names nothing, then; composing from it says what is wrong
