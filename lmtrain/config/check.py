"""Checks every node of a config against the signature of its `_target_`: keys, types and ranges."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import NonNegativeInt, PositiveInt

from lmtrain.config.keys import HYDRA_KEYS
from lmtrain.config.signature import Parameter, Signature, TargetError, signature_of
from lmtrain.config.values import check_values, parts_in
from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import as_written
from lmtrain.terminal.paths import with_homes


@dataclass(frozen=True)
class PassedArguments:
    """The arguments that lmtrain itself passes to a group's target: how many by position, and which by keyword.

    The group's YAML spells out all others.
    """

    positional: int = 0
    keywords: frozenset[str] = frozenset()


SCHEDULER = PassedArguments(positional=1)  # the step
GROUPS: Mapping[str, PassedArguments] = {
    "prepare": PassedArguments(),
    "data": PassedArguments(keywords=frozenset({"split", "seed"})),
    "model": PassedArguments(),
    "optimizer": PassedArguments(positional=1),  # the model's named parameters
    "scheduler": SCHEDULER,
    "system": PassedArguments(),
    "trainer": PassedArguments(positional=3),  # parts, recorder, state
}
LOGGER = PassedArguments(positional=1)  # the RunInfo; `logger` holds several nodes, one a member
PART = PassedArguments()  # a part of a part

ROOT: Mapping[str, Parameter] = {
    "name": Parameter(str | int, required=True),
    "seed": Parameter(Annotated[int, Interval(ge=0, lt=2**63)], required=True),
    "sample_tokens": Parameter(NonNegativeInt, required=True),
    "resume": Parameter(str | None, required=False),
    "fork": Parameter(str | None, required=False),
    "step": Parameter(PositiveInt | None, required=False),
    "retry_failed": Parameter(bool, required=False),
}


def check(cfg: DictConfig, groups: Iterable[str] | None = None) -> DictConfig:
    """Return the config resolved, its numbers in the types that their targets ask for; `groups` limits what is checked.

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
    root: dict[str, Any] = {str(key): with_homes(value) for key, value in container.items()}
    scalars = {key: value for key, value in root.items() if key not in {*GROUPS, "logger"}}
    problems = check_values("", scalars, Signature(ROOT, open=False), valid=[*ROOT, *GROUPS, "logger"])
    root.update(scalars)
    for key in groups or [*GROUPS, "logger"]:
        node = root.get(key)
        if key == "logger":
            members = node if isinstance(node, dict) else {}
            if "_target_" in members:
                problems["logger"] = ": several can be chosen, so each is nested under its name: NAME: {_target_: …}"
                members = {}
            for name, member in members.items():
                problems |= _check_node(f"logger.{name}", member, LOGGER)
        elif key == "model" and isinstance(node, dict) and node.get("vocab_size", 0) is None:
            # The data's, known when its token files are.
            problems |= _check_node(key, known := {**node, "vocab_size": 1}, GROUPS[key])
            root[key] = {**known, "vocab_size": None}
        elif key != "prepare" or node is not None:
            problems |= _check_node(key, node, GROUPS[key])
    # A wrong value that others refer to is one mistake.
    own = {key: text for key, text in problems.items() if not is_reference(cfg, key)} or problems
    if own:
        raise ConfigError("\n".join(f"{key}{text}{_cure_for_text(cfg, key, text)}" for key, text in own.items()))
    return OmegaConf.create(root)


def is_reference(cfg: DictConfig, key: str) -> bool:
    """Return whether the unresolved value at a dotted key is that of another key, `${…}`."""
    return re.search(r"\$\{[^${}:]+\}", _unresolved(cfg, key)) is not None


def _unresolved(cfg: DictConfig, key: str) -> str:
    """Return the interpolation that stands at a dotted key; '' for any other value."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not (isinstance(node, DictConfig) and name in node and OmegaConf.is_interpolation(node, name)):
        return ""
    return str(OmegaConf.to_container(node)[name])  # type: ignore[call-overload, index]


def _cure_for_text(cfg: DictConfig, key: str, problem: str) -> str:
    """Return the way out where text stands that reads as something else, in quotes or from the environment."""
    if not problem.startswith('="'):
        return ""
    written = _unresolved(cfg, key)
    if "${oc.env:" in written:
        return f'; an environment variable is text, which "${{oc.decode:{written}}}" reads'
    return "" if written else "; quotes make it text: leave them out"


def check_part(path: str, node: Any) -> None:
    """Check a node that is not part of a run's config; the messages give it that path.

    Raises:
        ConfigError: as `check`.
    """
    if problems := _check_node(path, node, PART):
        raise ConfigError("\n".join(f"{key}{text}" for key, text in problems.items()))


def _check_node(path: str, node: Any, passed: PassedArguments) -> dict[str, str]:
    """Return what is wrong, by key, worded so that the text can follow the key."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return {path: f"={as_written(node)}: needs a _target_, the dotted path of a class or function"}
    values = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
    parts = {key: found for key, value in values.items() if (found := parts_in(f"{path}.{key}", value))}
    try:
        signature = signature_of(node["_target_"], typed=values.keys() - parts.keys())
    except TargetError as error:
        return {f"{path}._target_": f"={node['_target_']}: {error}"}
    # A scheduler is called with the step: the function itself if it is _partial_, or what a class makes.
    positional = passed.positional if passed is not SCHEDULER or node.get("_partial_") else 0
    ours = {*list(signature.parameters)[:positional], *passed.keywords}
    problems = {f"{path}.{key}": f"={values.pop(key)}: set by lmtrain itself" for key in sorted(ours & values.keys())}
    for found in parts.values():
        for part_path, part in found:
            problems |= _check_node(part_path, part, PART)
    # A part that is handed on unfinished gets the rest of its arguments later, from the part that calls it.
    lenient = passed is PART and bool(node.get("_partial_"))
    tunable = {
        name: Parameter(parameter.annotation, parameter.required and not lenient)
        for name, parameter in signature.parameters.items()
        if name not in ours
    }
    problems |= check_values(f"{path}.", values, Signature(tunable, signature.open))
    node.update(values)
    return problems
