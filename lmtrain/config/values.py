"""Checks the values of a config node: unknown keys, types and ranges."""

import json
import typing
from collections.abc import Callable, Sequence
from typing import Any

import yaml
from pydantic import ConfigDict, Field, ValidationError, create_model

from lmtrain.config.keys import did_you_mean
from lmtrain.config.signature import Signature
from lmtrain.terminal.as_text import as_written


def parts_in(path: str, value: Any) -> list[tuple[str, Any]]:
    """Return the parts (nodes with a `_target_`) in a value with their paths: the value itself, or those inside it."""
    if isinstance(value, dict) and "_target_" in value:
        return [(path, value)]
    if isinstance(value, dict):
        return [found for key, item in value.items() for found in parts_in(f"{path}.{key}", item)]
    if isinstance(value, list):
        return [found for index, item in enumerate(value) for found in parts_in(f"{path}.{index}", item)]
    return []


def _is_part(annotation: Any) -> bool:
    """Return whether an annotation needs an object that lmtrain builds: a protocol or a callable."""
    return bool(getattr(annotation, "_is_protocol", False)) or typing.get_origin(annotation) is Callable


def _integral(value: Any) -> Any:
    """Return whole numbers such as 1e4 as ints; validation turns them back into floats for a float parameter."""
    if isinstance(value, list):
        return [_integral(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_values(
    prefix: str, values: dict[str, Any], signature: Signature, valid: Sequence[str] = ()
) -> dict[str, str]:
    """Return the problems of one node by key, and convert its numbers to the declared types, in place."""
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
                problems[f"{prefix}{key}"] = f": is missing; give {prefix}{key}=VALUE, or write it in the YAML"
            continue
        if parts_in(prefix, values[key]):
            continue  # checked against their own signatures
        if _is_part(parameter.annotation):
            problems[f"{prefix}{key}"] = (
                f"={as_written(values[key])}: needs a _target_; to select a choice of a config group, write a slash: "
                f"{f'{prefix}{key}'.replace('.', '/')}={as_written(values[key])}"
            )
            continue
        if parameter.annotation is not Any:
            values[key] = values[key] if str in typing.get_args(parameter.annotation) else _integral(values[key])
        # An alias, because pydantic reserves some names that a parameter may have.
        fields[f"field_{index}"] = (parameter.annotation, Field(alias=key))
    if unreadable := [key for key in values if not _is_text(values[key])]:
        reason = "is not UTF-8; rename it, or write ? for the byte"
        return problems | {f"{prefix}{key}": f"={as_written(values[key])}: {reason}" for key in unreadable}
    model = create_model(
        "Node", __config__=ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False), **fields
    )
    try:
        # In JSON mode, pydantic accepts a list for a tuple, but still no '3' for a number.
        keys = [field.alias for _, field in fields.values()]
        checked = model.model_validate_json(json.dumps({key: values[key] for key in keys}))
    except ValidationError as error:
        reasons: dict[str, list[str]] = {}
        for detail in error.errors():
            key, *inside = map(str, detail["loc"])
            where = detail["loc"][1] if inside else None
            if isinstance(where, str) and isinstance(values[key], dict) and where in values[key]:
                key = f"{key}.{where}"  # a key inside a dict
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
    """Return whether all strings in a value are valid UTF-8; an argument in another encoding may not be."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _reads_otherwise(text: str) -> bool:
    """Return whether a text without quotes would be a number, a boolean or null."""
    try:
        return not isinstance(yaml.safe_load(text), str) or bool(float(text) + 1)
    except (ValueError, yaml.YAMLError):
        return False


def _quoted_if_misleading(value: Any) -> str:
    """Return a value as it is written, in quotes if a text would otherwise look like a number, boolean or null."""
    return f'"{value}"' if isinstance(value, str) and _reads_otherwise(value) else as_written(value)


def _how_to_quote(key: str, value: Any, reasons: Sequence[str]) -> str:
    """Return the way out for a number or boolean that should be text."""
    if not isinstance(value, bool | int | float) or not any("valid string" in reason for reason in reasons):
        return ""
    return f"; for text, put quotes inside the shell's quotes: '{key}=\"{as_written(value)}\"'"
