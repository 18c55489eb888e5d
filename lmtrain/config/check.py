"""Checks every node of a config against the signature of its `_target_`: keys, types and ranges."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import NonNegativeInt

from lmtrain.config.batch_size import AUTO, derive_accumulation, is_auto, schedule_problems
from lmtrain.config.keys import HYDRA_KEYS
from lmtrain.config.signature import Parameter, Signature, TargetError, signature_of
from lmtrain.config.values import check_values, parts_in
from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import as_written
from lmtrain.terminal.paths import with_homes


@dataclass(frozen=True)
class PassedArguments:
    """The arguments that lmtrain itself passes to a group's target; the group's YAML sets all others.

    Attributes:
        positional: Number of positional arguments.
        keywords: Names of keyword arguments.
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
    "parallel": PassedArguments(positional=2),  # the device, and the connection to the other processes
    "trainer": PassedArguments(positional=3),  # parts, recorder, state
}
OPTIONAL = ("prepare", "parallel")  # runs of older versions have no `parallel`
LOGGER = PassedArguments(positional=1)  # the RunInfo; `logger` contains one node per logger
PART = PassedArguments()  # a node inside another node

ROOT: Mapping[str, Parameter] = {
    "name": Parameter(str | int, required=True),
    "seed": Parameter(Annotated[int, Interval(ge=0, lt=2**63)], required=True),
    "sample_tokens": Parameter(NonNegativeInt, required=True),
    "resume": Parameter(str | None, required=False),
    "fork": Parameter(str | None, required=False),
    "init_from": Parameter(str | None, required=False),
    "step": Parameter(NonNegativeInt | None, required=False),
    "retry_failed": Parameter(bool, required=False),
}


def check(cfg: DictConfig, groups: Iterable[str] | None = None) -> DictConfig:
    """Return the resolved config with its numbers converted to the types that the targets declare.

    Args:
        cfg: The composed config.
        groups: The config groups to check; None for all.

    Raises:
        ConfigError: There are unknown keys, wrong types or values out of range; the message lists all of them.
    """
    try:
        container = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True, enum_to_str=True)
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key}: is missing; give {error.full_key}=VALUE") from error
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
                problems["logger"] = ": must contain each logger under its own name: NAME: {_target_: …}"
                members = {}
            for name, member in members.items():
                problems |= _check_node(f"logger.{name}", member, LOGGER)
        elif key == "model" and isinstance(node, dict) and node.get("vocab_size", 0) is None:
            # The value comes from the token files, which may not exist yet; the check uses 1.
            problems |= _check_node(key, known := {**node, "vocab_size": 1}, GROUPS[key])
            root[key] = {**known, "vocab_size": None}
        elif key == "data" and isinstance(node, dict) and is_auto(root):
            problems |= _check_node(key, known := {**node, "batch_size": 1}, GROUPS[key])  # a trial finds the number
            root[key] = {**known, "batch_size": AUTO}
        elif key not in OPTIONAL or node is not None:
            problems |= _check_node(key, node, GROUPS[key])
    if not problems:
        problems = derive_accumulation(root) | schedule_problems(root)
    # A wrong value to which other keys refer is reported once.
    own = {key: text for key, text in problems.items() if not is_reference(cfg, key)} or problems
    if own:
        raise ConfigError("\n".join(f"{key}{text}{_way_out_for_text(cfg, key, text)}" for key, text in own.items()))
    return OmegaConf.create(root)


def is_reference(cfg: DictConfig, key: str) -> bool:
    """Return whether the unresolved value at a dotted key refers to another key, as in `${…}`."""
    return re.search(r"\$\{[^${}:]+\}", _unresolved(cfg, key)) is not None


def _unresolved(cfg: DictConfig, key: str) -> str:
    """Return the interpolation at a dotted key, or '' if it has any other value."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not (isinstance(node, DictConfig) and name in node and OmegaConf.is_interpolation(node, name)):
        return ""
    return str(OmegaConf.to_container(node)[name])  # type: ignore[call-overload, index]


def _way_out_for_text(cfg: DictConfig, key: str, problem: str) -> str:
    """Return the way out if a quoted value or an environment variable is text where another type is needed."""
    if not problem.startswith('="'):
        return ""
    written = _unresolved(cfg, key)
    if "${oc.env:" in written:
        return f'; an environment variable is text; convert it with "${{oc.decode:{written}}}"'
    return "" if written else "; the quotes make it text; leave them out"


def check_part(path: str, node: Any) -> None:
    """Check a node that is not in a run's config; `path` is its name in the messages.

    Raises:
        ConfigError: There are unknown keys, wrong types or values out of range.
    """
    if problems := _check_node(path, node, PART):
        raise ConfigError("\n".join(f"{key}{text}" for key, text in problems.items()))


def _check_node(path: str, node: Any, passed: PassedArguments) -> dict[str, str]:
    """Return the problems of a node by key; each text is worded to follow its key."""
    if not isinstance(node, dict) or not isinstance(node.get("_target_"), str):
        return {path: f"={as_written(node)}: needs a _target_, the dotted path of a class or function"}
    values = {key: value for key, value in node.items() if key not in HYDRA_KEYS}
    parts = {key: found for key, value in values.items() if (found := parts_in(f"{path}.{key}", value))}
    try:
        signature = signature_of(node["_target_"], typed=values.keys() - parts.keys())
    except TargetError as error:
        return {f"{path}._target_": f"={node['_target_']}: {error}"}
    # A scheduler is called with the step. If it is not _partial_, the object made from its class is called instead.
    positional = passed.positional if passed is not SCHEDULER or node.get("_partial_") else 0
    ours = {*list(signature.parameters)[:positional], *passed.keywords}
    ours |= {name for name, parameter in signature.parameters.items() if parameter.positional_only}
    problems = {
        f"{path}.{key}": f"={values.pop(key)}: is set by lmtrain itself; leave it out"
        for key in sorted(ours & values.keys())
    }
    for found in parts.values():
        for part_path, part in found:
            problems |= _check_node(part_path, part, PART)
    # A _partial_ part gets its missing arguments later, from the part that calls it.
    lenient = passed is PART and bool(node.get("_partial_"))
    tunable = {
        name: Parameter(parameter.annotation, parameter.required and not lenient)
        for name, parameter in signature.parameters.items()
        if name not in ours
    }
    problems |= check_values(f"{path}.", values, Signature(tunable, signature.open))
    node.update(values)
    return problems
