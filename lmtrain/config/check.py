"""Checks every node of a config against the signature of its `_target_`: keys, types and ranges."""

import difflib
import json
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import yaml
from annotated_types import Interval
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, ValidationError, create_model

from lmtrain.config.signature import Parameter, Signature, TargetError, signature_of
from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import as_written
from lmtrain.terminal.paths import with_home


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
HYDRA_KEYS = frozenset({"_target_", "_partial_", "_convert_", "_recursive_"})


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
    root: dict[str, Any] = {str(key): _with_homes(value) for key, value in container.items()}
    scalars = {key: value for key, value in root.items() if key not in {*GROUPS, "logger"}}
    problems = _check_values("", scalars, Signature(ROOT, open=False), valid=[*ROOT, *GROUPS, "logger"])
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


def _with_homes(node: Any) -> Any:
    """Return a container with the user's home in every text that begins with `~/`: it is a path, whatever its key."""
    if isinstance(node, dict):
        return {key: _with_homes(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_with_homes(value) for value in node]
    return with_home(node) if isinstance(node, str) else node


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
    parts = {key: found for key, value in values.items() if (found := _parts(f"{path}.{key}", value))}
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
    problems |= _check_values(f"{path}.", values, Signature(tunable, signature.open))
    node.update(values)
    return problems


def _parts(path: str, value: Any) -> list[tuple[str, Any]]:
    """Return the parts in a value, with their paths: the value itself, or what it lists."""
    if isinstance(value, dict) and "_target_" in value:
        return [(path, value)]
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in _parts(f"{path}.{key}", item)]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in _parts(f"{path}.{index}", item)]
    return []


def _is_part(annotation: Any) -> bool:
    """Return whether only an object made by lmtrain can be meant: one of a protocol, or a function."""
    return bool(getattr(annotation, "_is_protocol", False)) or typing.get_origin(annotation) is Callable


def _integral(value: Any) -> Any:
    """Turn whole numbers such as 1e4 into ints; a float parameter turns them back."""
    if isinstance(value, list):
        return [_integral(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _check_values(
    prefix: str, values: dict[str, Any], signature: Signature, valid: Sequence[str] = ()
) -> dict[str, str]:
    """Return what is wrong in one node, by key, and put its numbers into the types asked for, in place."""
    problems: dict[str, str] = {}
    known = signature.parameters
    for key in [] if signature.open else [key for key in values if key not in known]:
        nearest = did_you_mean(key, valid or known, prefix)
        listing = "" if nearest else f"; there are {', '.join(valid or known)}" if known else ""
        problems[f"{prefix}{key}"] = f"={as_written(values[key])}: unknown key{nearest}{listing}"
    fields: dict[str, Any] = {}
    for index, (key, parameter) in enumerate(known.items()):
        if key not in values:
            if parameter.required:
                problems[f"{prefix}{key}"] = f": missing; give {prefix}{key}=VALUE, or write it in the YAML"
            continue
        if _parts(prefix, values[key]):
            continue  # checked against signatures of their own
        if _is_part(parameter.annotation):
            problems[f"{prefix}{key}"] = (
                f"={as_written(values[key])}: needs a _target_; a choice of a config group is written with a slash, "
                f"{f'{prefix}{key}'.replace('.', '/')}={as_written(values[key])}"
            )
            continue
        if parameter.annotation is not Any:
            values[key] = values[key] if str in typing.get_args(parameter.annotation) else _integral(values[key])
        # An alias, as a parameter may have a name that pydantic keeps for itself.
        fields[f"field_{index}"] = (parameter.annotation, Field(alias=key))
    if unreadable := [key for key in values if not _is_text(values[key])]:
        reason = "is not UTF-8; rename it, or write ? for the byte"
        return problems | {f"{prefix}{key}": f"={as_written(values[key])}: {reason}" for key in unreadable}
    model = create_model(
        "Node", __config__=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False), **fields
    )
    try:
        # As JSON, lists are good enough for tuples, while '3' is still no number.
        keys = [field.alias for _, field in fields.values()]
        checked = model.model_validate_json(json.dumps({key: values[key] for key in keys}))
    except ValidationError as error:
        reasons: dict[str, list[str]] = {}
        for detail in error.errors():
            key, *inside = map(str, detail["loc"])
            where = detail["loc"][1] if inside else None
            if isinstance(where, str) and isinstance(values[key], dict) and where in values[key]:
                key = f"{key}.{where}"  # a dict's own key
            element = f"element {where}: " if isinstance(where, int) else ""
            reasons.setdefault(key, []).append(f"{element}{detail['msg'][0].lower()}{detail['msg'][1:]}")
        for path, why in reasons.items():
            key, _, inner = path.partition(".")
            value = values[key][inner] if inner else values[key]
            wrong = f"={_quoted_if_misleading(value)}: {', or '.join(dict.fromkeys(why))}"
            problems[f"{prefix}{path}"] = wrong + _how_to_quote(f"{prefix}{path}", value, why)
    else:
        for name, field in type(checked).model_fields.items():
            if isinstance(value := getattr(checked, name), int | float):
                values[str(field.alias)] = value
    return problems


def _is_text(value: Any) -> bool:
    """Return whether all strings in a value are text: an argument in another encoding has bytes that are none."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _reads_otherwise(text: str) -> bool:
    """Return whether a text would be a number, a truth value or null without quotes."""
    try:
        return not isinstance(yaml.safe_load(text), str) or bool(float(text) + 1)
    except (ValueError, yaml.YAMLError):
        return False


def _quoted_if_misleading(value: Any) -> str:
    """Return a value as it is written, with the quotes without which a text would look like another value."""
    return f'"{value}"' if isinstance(value, str) and _reads_otherwise(value) else as_written(value)


def _how_to_quote(key: str, value: Any, reasons: Sequence[str]) -> str:
    """Return the cure for a number or a truth value where text is needed."""
    if not isinstance(value, bool | int | float) or not any("valid string" in reason for reason in reasons):
        return ""
    return f"; to mean text, quote it within the shell's quotes: '{key}=\"{as_written(value)}\"'"


def key_paths(node: Any, prefix: str = "") -> list[str]:
    """Return all dotted keys of a nested container."""
    if not isinstance(node, dict):
        return []
    paths = []
    for key, value in node.items():
        paths += [f"{prefix}{key}", *key_paths(value, f"{prefix}{key}.")]
    return paths


def did_you_mean(key: str, valid: Iterable[str], prefix: str = "") -> str:
    """Return `; did you mean …?` with the nearest valid key, else what the key's own group has; '' for neither.

    The nearest is one of the same group with a similar last part; else one of a similar path, where the group is
    misspelt; else one with a similar last part anywhere.
    """
    valid = list(valid)
    group, _, name = key.rpartition(".")
    siblings = [path.rpartition(".")[2] for path in valid if group and path.rpartition(".")[0] == group]
    siblings = [sibling for sibling in siblings if sibling not in HYDRA_KEYS]
    near = [sibling for sibling in siblings if _abbreviates(name, sibling)]
    near = near or difflib.get_close_matches(name, siblings, n=1, cutoff=0.6)
    last_parts = {path.rpartition(".")[2]: path for path in reversed(valid)}
    nearest = (
        [f"{group}.{sibling}" for sibling in near]
        or ([] if siblings else difflib.get_close_matches(key, valid, n=1, cutoff=0.7))
        or [last_parts[other] for other in difflib.get_close_matches(name, last_parts, n=1, cutoff=0.7)]
    )
    if nearest:
        return f"; did you mean {prefix}{nearest[0]}?"
    return f"; {group} has {', '.join(siblings)}" if siblings else ""


def _abbreviates(name: str, other: str) -> bool:
    """Return whether each word of a name begins one of the other's, in the same order, as in `grad_accum`."""
    words = iter(other.split("_"))
    return all(any(longer.startswith(word) for longer in words) for word in name.split("_"))
