"""Composes a run's config from its groups and checks every node of it against the signature of its `_target_`.

Hydra alone takes a misspelt key behind `+`, an unknown key in an experiment file and `lr=abc`. Here each is a
`ConfigError` that names the key, the value and the way out, before torch is imported or anything is written.
"""

import difflib
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ConfigDict, Field, NonNegativeInt, ValidationError, create_model

from lmtrain.paths import shipped
from lmtrain.signatures import Parameter, Signature, TargetError, signature_of

HYDRA_VERSION_BASE = "1.3"


class ConfigError(ValueError):
    """A mistake of the user's in config or input; the message is all that is shown."""


@dataclass(frozen=True)
class Group:
    """What lmtrain itself passes to a group's target, beside what its YAML spells out."""

    positional: int = 0
    keywords: frozenset[str] = frozenset()


GROUPS: Mapping[str, Group] = {
    "prepare": Group(),
    "data": Group(keywords=frozenset({"split", "seed"})),
    "model": Group(),
    "optimizer": Group(positional=1),  # the model's named parameters
    "scheduler": Group(positional=1),  # the step
    "system": Group(),
    "trainer": Group(
        keywords=frozenset(
            {"model", "optimizer", "schedule", "train_loader", "val_loader", "system", "logger", "checkpoints", "state"}
        )
    ),
}
LOGGER = Group(positional=1)  # the RunInfo; `logger` holds several nodes, one a member
PART = Group()  # a part of a part

ROOT: Mapping[str, Parameter] = {
    "name": Parameter(str, required=True),
    "seed": Parameter(NonNegativeInt, required=True),
    "sample_tokens": Parameter(NonNegativeInt, required=True),
    "resume": Parameter(str | None, required=False),
}
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_"})


# Composition


class UserSearchPath(SearchPathPlugin):
    """Puts the current folder's `conf` and `experiments` before the shipped ones, so that they can shadow them."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        for folder, scheme in (("experiments", "experiments"), ("conf", "file")):
            if folder == "experiments":
                search_path.append("lmtrain", f"{scheme}://{shipped(folder)}")
            own = Path.cwd() / folder
            if own.is_dir() and own != shipped(folder):
                search_path.prepend("user", f"{scheme}://{own}")


@cache
def set_up_hydra() -> None:
    """Registers, once a process, where configs are found and what they can compute."""
    # Imported here for the start-up of the verbs that compose nothing.
    from lmtrain import launcher
    from lmtrain.experiments_source import ExperimentsSource

    Plugins.instance().register(ExperimentsSource)
    Plugins.instance().register(UserSearchPath)
    launcher.register()
    OmegaConf.register_new_resolver("run_id", lambda: os.urandom(2).hex(), use_cache=True, replace=True)


def compose(overrides: Sequence[str], *, with_hydra: bool = False) -> DictConfig:
    """The config that Hydra composes from the menu and the overrides, unresolved and unchecked.

    `with_hydra` keeps Hydra's own settings in it, as the key `hydra`.

    Raises:
        ConfigError: an override that can't be parsed, an unknown key, group or choice.
    """
    set_up_hydra()
    outer = GlobalHydra.instance().hydra  # a sweep composes its jobs while Hydra itself is running
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(shipped("conf")), job_name="lmtrain", version_base=HYDRA_VERSION_BASE):
            return hydra.compose("config", list(overrides), return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(_explain(error, overrides)) from error
    finally:
        GlobalHydra.instance().hydra = outer


def without_hydra(composed: DictConfig) -> DictConfig:
    """The config alone, of one composed with Hydra's settings."""
    with open_dict(composed):
        composed.pop("hydra")
    return composed


def _explain(error: Exception, overrides: Sequence[str]) -> str:
    """Hydra's own words are for its developers: names the key, the value and what comes nearest."""
    match error:
        case OverrideParseException():
            reason = str(error).splitlines()[0]
            return f"{error.override}: not a valid override ({reason}); write key=value, and quote special characters"
        case MissingConfigException(missing_cfg_file=str(missing), options=options):
            group, _, choice = missing.rpartition("/")
            nearest = nearest_of(choice, options or [])
            return f"{group}={choice}: no such choice{nearest}" + (
                f"; there are {', '.join(options)}" if options else ""
            )
    message = str(error)
    unknown = re.search(r"Could not override '([^']+)'", message)
    if isinstance(error, ConfigCompositionException) and unknown:
        key = unknown[1]
        others = [text for text in overrides if re.split("[=@]", text.lstrip("+~"))[0] != key]
        value = next((text.split("=", 1)[1] for text in overrides if text.startswith(f"{key}=")), "")
        try:
            valid = key_paths(OmegaConf.to_container(compose(others)))
        except ConfigError:
            valid = []
        return f"{key}={value}: unknown key{nearest_of(key, valid)}"
    cause = error.__cause__
    return message.splitlines()[0] + (f": {str(cause).splitlines()[0]}" if cause and str(cause) else "")


def key_paths(node: Any, prefix: str = "") -> list[str]:
    """All dotted keys of a nested container."""
    if not isinstance(node, dict):
        return []
    paths = []
    for key, value in node.items():
        paths += [f"{prefix}{key}", *key_paths(value, f"{prefix}{key}.")]
    return paths


def nearest_of(key: str, valid: Iterable[str]) -> str:
    """`; did you mean …?` for the valid key that comes nearest, by its whole path or its last part; else ''."""
    valid = list(valid)
    by_path = difflib.get_close_matches(key, valid, n=1, cutoff=0.7)
    last_parts = {path.rpartition(".")[2]: path for path in reversed(valid)}
    by_name = difflib.get_close_matches(key.rpartition(".")[2], last_parts, n=1, cutoff=0.7)
    nearest = by_path or [last_parts[name] for name in by_name]
    return f"; did you mean {nearest[0]}?" if nearest else ""


def apply_overrides(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A copy of a composed config with values changed; for a run that goes on, whose groups are already chosen."""
    cfg = cfg.copy()
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except OverrideParseException as error:
        raise ConfigError(_explain(error, overrides)) from error
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() or override.is_delete() or override.is_add():
            raise ConfigError(f"{override.input_line}: resume takes plain key=value changes alone")
        if OmegaConf.select(cfg, key, default=_MISSING) is _MISSING:
            raise ConfigError(
                f"{key}={override.value()}: unknown key{nearest_of(key, key_paths(OmegaConf.to_container(cfg)))}"
            )
        if isinstance(OmegaConf.select(cfg, key), DictConfig):
            raise ConfigError(f"{override.input_line}: a resumed run keeps its config groups; start a new run instead")
        OmegaConf.update(cfg, key, override.value())
    return cfg


_MISSING = object()

# Checking


def check(cfg: DictConfig, groups: Iterable[str] | None = None) -> DictConfig:
    """The config resolved, its numbers in the types that their targets ask for; `groups` limits what is checked.

    Raises:
        ConfigError: unknown keys, wrong types and values out of range, all of them in one message.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: missing; give {error.full_key}=VALUE") from error
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{error.full_key}: {reason}" if error.full_key else reason) from error
    assert isinstance(container, dict)
    root: dict[str, Any] = {str(key): value for key, value in container.items()}
    scalars = {key: value for key, value in root.items() if key not in {*GROUPS, "logger"}}
    problems = _check_values("", scalars, Signature(ROOT, open=False), valid=[*ROOT, *GROUPS, "logger"])
    root.update(scalars)
    for key in groups or [*GROUPS, "logger"]:
        node = root.get(key)
        if key == "logger":
            members = node if isinstance(node, dict) else {}
            for name, member in members.items():
                problems |= _check_node(f"logger.{name}", member, LOGGER)
        elif key == "model" and isinstance(node, dict) and node.get("vocab_size", 0) is None:
            # The data's, known when its token files are.
            problems |= _check_node(key, known := {**node, "vocab_size": 1}, GROUPS[key])
            root[key] = {**known, "vocab_size": None}
        elif key != "prepare" or node is not None:
            problems |= _check_node(key, node, GROUPS[key])
    # A wrong value that others refer to is one mistake.
    own = {key: text for key, text in problems.items() if not _refers(cfg, key)}
    if problems:
        raise ConfigError("\n".join(f"{key}{text}" for key, text in (own or problems).items()))
    return OmegaConf.create(root)


def _refers(cfg: DictConfig, key: str) -> bool:
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    return isinstance(node, DictConfig) and name in node and OmegaConf.is_interpolation(node, name)


def _check_node(path: str, node: Any, group: Group) -> dict[str, str]:
    """What is wrong, by key, worded so that key and text follow each other."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return {path: f"={_shown(node)}: needs a _target_, the dotted path of a class or function"}
    values = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
    parts = {key: value for key, value in values.items() if isinstance(value, dict) and "_target_" in value}
    try:
        signature = signature_of(node["_target_"], typed=values.keys() - parts.keys())
    except TargetError as error:
        return {f"{path}._target_": f"={node['_target_']}: {error}"}
    ours = {*list(signature.parameters)[: group.positional], *group.keywords}
    problems = {f"{path}.{key}": f"={values.pop(key)}: set by lmtrain itself" for key in sorted(ours & values.keys())}
    for key, part in parts.items():
        problems |= _check_node(f"{path}.{key}", part, PART)
    # A part that is handed on unfinished gets the rest of its arguments later, from the part that calls it.
    lenient = group is PART and bool(node.get("_partial_"))
    tunable = {
        name: Parameter(parameter.annotation, parameter.required and not lenient)
        for name, parameter in signature.parameters.items()
        if name not in ours
    }
    problems |= _check_values(f"{path}.", values, Signature(tunable, signature.open))
    node.update(values)
    return problems


def _check_values(
    prefix: str, values: dict[str, Any], signature: Signature, valid: Sequence[str] = ()
) -> dict[str, str]:
    """What is wrong in one node, by key; its numbers are put into the types asked for, in place."""
    problems: dict[str, str] = {}
    known = signature.parameters
    for key in [] if signature.open else [key for key in values if key not in known]:
        nearest = nearest_of(f"{prefix}{key}", [f"{prefix}{name}" for name in valid or known])
        listing = "" if nearest else f"; there are {', '.join(valid or known)}" if known else ""
        problems[f"{prefix}{key}"] = f"={_shown(values[key])}: unknown key{nearest}{listing}"
    fields: dict[str, Any] = {}
    for index, (key, parameter) in enumerate(known.items()):
        if key not in values:
            if parameter.required:
                problems[f"{prefix}{key}"] = f": missing; give {prefix}{key}=VALUE, or write it in the YAML"
            continue
        value = values[key]
        if isinstance(value, dict) and "_target_" in value:
            continue  # a part of its own, checked against its own signature
        if isinstance(value, float) and value.is_integer() and parameter.annotation is not Any:
            values[key] = value = int(value)  # max_steps=1e4 is a whole number; a float parameter turns it back
        # An alias, as a parameter may have a name that pydantic keeps for itself.
        fields[f"field_{index}"] = (parameter.annotation, Field(alias=key))
    model = create_model("Node", __config__=ConfigDict(strict=True, arbitrary_types_allowed=True), **fields)
    try:
        # As JSON, lists are good enough for tuples, while '3' is still no number.
        checked = model.model_validate_json(json.dumps(values))
    except ValidationError as error:
        reasons: dict[str, list[str]] = {}
        for detail in error.errors():
            element = (
                f"element {detail['loc'][1]}: " if len(detail["loc"]) > 1 and isinstance(detail["loc"][1], int) else ""
            )
            reason = f"{element}{detail['msg'][0].lower()}{detail['msg'][1:]}"
            reasons.setdefault(str(detail["loc"][0]), []).append(reason)
        for key, why in reasons.items():
            problems[f"{prefix}{key}"] = f"={_shown(values[key])}: {', or '.join(dict.fromkeys(why))}"
    else:
        for name, field in type(checked).model_fields.items():
            if isinstance(value := getattr(checked, name), int | float):
                values[str(field.alias)] = value
    return problems


def _shown(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def build(node: Any, *arguments: Any, **objects: Any) -> Any:
    """Instantiates one checked node, and is the only place to do so; a node of `_partial_` stays a function.

    Lists and dicts of the config reach the target as plain ones, and `objects` as they are: Hydra itself would
    copy them, and turn a dataclass among them into a dict.
    """
    factory = hydra.utils.instantiate({**node, "_partial_": True}, _convert_="all")
    return factory if node.get("_partial_") else factory(*arguments, **objects)
