"""Tests that a config that would grow without bound is refused before it is resolved, and any other is accepted."""

from itertools import pairwise
from typing import Any

import pytest
from omegaconf import OmegaConf

from lmtrain.config.compose import compose
from lmtrain.config.recorded.interpolation_size import check_resolved_size

N = 40


def chain(value: Any, last: Any, first: str = "a") -> dict[str, Any]:
    """Return keys a0, a1, …, each with `value` in which NEXT is replaced by the following key."""
    links = [f"{first}{number}" for number in range(N + 1)]

    def with_next(node: Any, following: str) -> Any:
        if isinstance(node, str):
            return node.replace("NEXT", following)
        return [with_next(item, following) for item in node]

    return {link: with_next(value, following) for link, following in pairwise(links)} | {links[-1]: last}


@pytest.mark.parametrize(
    "config",
    [
        chain("${NEXT}${NEXT}", ""),
        chain(["${NEXT}", "${NEXT}"], 1),
        chain(["${NEXT[0]}${NEXT.1}"] * 2, ["x", "x"]),
        {"deep": chain("${.NEXT}${..deep.NEXT}", "x")},
        {"way": "${deep}", "deep": chain("${way.NEXT}${way.NEXT}", "x")},
        {"size": "small", "way": "${deep.${size}}", "deep": {"small": chain("${way.NEXT}${way.NEXT}", "x")}},
        chain("${sizes.${NEXT}}${sizes.${NEXT}}", "x") | {"sizes": {"x": "x", "xx": "x"}},
        chain("${oc.env:LMTRAIN_DATA,${NEXT}${NEXT}}", "x"),
        {"a": "${b}", "b": "x ${a}"},
        {"a": {"b": "${a}"}},
    ],
)
def test_unbounded_growth_is_detected_without_resolving(config: Any) -> None:
    with pytest.raises(
        ValueError, match=r"^[\w.]+: (resolving its interpolations would take too long|refers to itself)$"
    ):
        check_resolved_size(config)


@pytest.mark.parametrize(
    ("config", "key", "expected"),
    [
        ({"a": {"size": "small", "small": 1, "large": 2, "d": "${.${.size}}"}, "b": "${a.d}"}, "b", 1),
        ({"name": "x", "x": 3, "b": "${${name}}"}, "b", 3),
        ({"model": "${models.${size}}", "size": "s", "models": {"s": {"d": "${model.e}", "e": 4}}}, "model.d", 4),
        ({"m": "${o}", "o": {"a": {"x": "${m.a.y}", "y": 1}}, "z": "${m.a.x}"}, "z", 1),
        ({"all": [1, [2, 3]], "b": "${all[1][0]}/${all.1.1}"}, "b", "2/3"),
    ],
)
def test_bounded_references_are_accepted(config: Any, key: str, expected: Any) -> None:
    check_resolved_size(config)
    assert OmegaConf.select(OmegaConf.create(config), key) == expected


def test_shipped_choices_are_small() -> None:
    for overrides in ([], ["data=mixture", "model=gpt2"], ["experiments=shakespeare_char"]):
        check_resolved_size(OmegaConf.to_container(compose(overrides)))


def test_a_reference_to_a_missing_key_is_left_to_omegaconf() -> None:
    check_resolved_size({"a": "${nothing.there} ${b.0} ${......c}", "b": "text", "l": ["${l[7]}"]})
