"""Rules that treat some parameters differently, by their role, name or number of dimensions."""

import difflib
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import ConfigDict, NonNegativeFloat, NonNegativeInt, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic takes that of `typing` from Python 3.12 on

# What a parameter is for: it is looked up by ids or positions, it makes the logits, it multiplies activations, or it
# has fewer than two dimensions (gains and biases).
Role = Literal["embedding", "output", "hidden", "vector"]

OUTPUT = re.compile(r"(^|\.)(output|lm_head|head|unembed\w*|embed_out)(\.weight)?$", re.IGNORECASE)
EMBEDDING = re.compile(r"(^|\.)(w[tp]e|positions|\w*embed\w*)(\.weight)?$", re.IGNORECASE)


class Rule(TypedDict, total=False):
    """A rule: which parameters it is about, and what holds for them. All conditions that it has must be true.

    Attributes:
        role: Condition: the role.
        names: Condition: a pattern for the name, in which `*` stands for any text, such as `layers.0.*`.
        ndim: Condition: the number of dimensions.
        lr_scale: Factor of the learning rate.
        weight_decay: Weight decay.
        algorithm: Algorithm, for an optimizer that has several.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")  # type: ignore[misc]
    role: Role
    names: str
    ndim: NonNegativeInt
    lr_scale: NonNegativeFloat
    weight_decay: NonNegativeFloat
    algorithm: str


CONDITIONS = ("role", "names", "ndim")


def checked_rules(rules: Sequence[Mapping[str, Any]]) -> list[Rule]:
    """Return the rules of a config; raise ValueError for an unknown key or a wrong value."""
    try:
        return TypeAdapter(list[Rule]).validate_python(list(rules))
    except ValidationError as error:
        first = error.errors()[0]
        number, *keys = first["loc"]
        if first["type"] == "extra_forbidden":
            near = difflib.get_close_matches(str(keys[-1]), Rule.__annotations__, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(Rule.__annotations__)}"
            message = f"unknown key; {hint}"
        else:
            message = f"{first['input']}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise ValueError(f"optimizer.rules: rule {int(number) + 1}, {'.'.join(map(str, keys))}: {message}") from error


def role_of(name: str, ndim: int) -> Role:
    """Return the role of a parameter. Embeddings and output layers are known by the usual names for them.

    A tied embedding, which is also the output layer, is an embedding.
    """
    if ndim < 2:
        return "vector"
    if OUTPUT.search(name):
        return "output"
    return "embedding" if EMBEDDING.search(name) else "hidden"


def treatment(rules: Sequence[Rule], name: str, ndim: int) -> dict[str, Any]:
    """Return what the rules say about a parameter; where several do, the last one holds."""
    found: dict[str, Any] = {}
    for rule in rules:
        if matches(rule, name, ndim):
            found |= {key: value for key, value in rule.items() if key not in CONDITIONS}
    return found


def matches(rule: Rule, name: str, ndim: int) -> bool:
    """Return whether a rule is about a parameter."""
    return (
        rule.get("role", role := role_of(name, ndim)) == role
        and fnmatchcase(name, rule.get("names", "*"))
        and rule.get("ndim", ndim) == ndim
    )
