"""Hydra's sweep syntax becomes Optuna's distributions."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lmtrain.errors import ConfigError
from lmtrain.sweep.search.space import parse_space


@pytest.mark.parametrize(
    ("text", "distribution", "size"),
    [
        ("interval(0, 1)", FloatDistribution(0, 1), float("inf")),
        ("tag(log, interval(1e-4, 1e-2))", FloatDistribution(1e-4, 1e-2, log=True), float("inf")),
        ("int(interval(4, 16))", IntDistribution(4, 16), 13),
        ("int(tag(log, interval(1, 100)))", IntDistribution(1, 100, log=True), 100),
        ("range(1, 5)", IntDistribution(1, 4), 4),
        ("range(2, 11, 3)", IntDistribution(2, 8, step=3), 3),
        ("range(5, 1, -2)", IntDistribution(3, 5, step=2), 2),
        ("range(0.1, 0.5, 0.1)", FloatDistribution(0.1, 0.4, step=0.1), 4),
        ("choice(a, b)", CategoricalDistribution(["a", "b"]), 2),
        ("8,16", CategoricalDistribution([8, 16]), 2),
        ("choice(true, 0.5, [1,2])", CategoricalDistribution([True, 0.5, "[1,2]"]), 3),
    ],
)
def test_each_kind_of_values_becomes_its_distribution(text: str, distribution: BaseDistribution, size: float) -> None:
    for space in (parse_space({"key": text}, []), parse_space({}, [f"key={text}"])):
        assert space.distributions == {"key": distribution}
        assert space.size() == size


@pytest.mark.parametrize("text", ["range(1, 5)", "range(0.1, 0.5, 0.1)", "choice(true, null_, [1,2], 1e-3)", "1,2"])
def test_discrete_values_equal_those_of_hydras_sweeper(text: str) -> None:
    parser = OverridesParser.create()
    wanted = [
        parser.parse_override(f"key={value}").value()
        for value in parser.parse_override(f"key={text}").sweep_string_iterator()
    ]
    space = parse_space({}, [f"key={text}"])
    (distribution,) = space.distributions.values()
    values: Any
    if isinstance(distribution, CategoricalDistribution):
        values = distribution.choices
    else:
        assert isinstance(distribution, IntDistribution | FloatDistribution)
        assert distribution.step is not None
        values = [distribution.low + number * distribution.step for number in range(int(space.size()))]
    written = [space.varied({"key": value})[0] for value in values]
    assert [parser.parse_override(text).value() for text in written] == [
        pytest.approx(value) if isinstance(value, float) else value for value in wanted
    ]


@pytest.mark.parametrize(
    ("text", "value", "written"),
    [
        ("tag(log, interval(1e-4, 1e-2))", 0.0003342330176505329, "0.0003342"),
        ("interval(0.5, 1.5)", 0.6586839721544656, "0.6587"),
        ("interval(0.99, 0.999)", 0.99123456789, "0.991235"),  # four digits of the narrow range
        ("interval(1000000.0, 1000010.0)", 1000001.23456, "1000001.23"),
        ("interval(0.0, 1.23456789)", 1.23456788, "1.23456788"),  # rounding would move it out of the range
        ("interval(0.0, 1.0)", 0.0, "0.0"),
        ("interval(0.0, 1.0)", 1e-9, "1e-09"),
        ("interval(0.0, 1.0)", 12.345678, "12.346"),  # drawn from an earlier, larger range
        ("range(0.1, 0.5, 0.1)", 0.30000000000000004, "0.3"),
        ("range(0.0, 1.0, 0.00001)", 0.12345, "0.12345"),
        ("choice(0.123456789,1)", 0.123456789, "0.123456789"),  # choices are not rounded
    ],
)
def test_a_drawn_number_is_rounded_to_significant_digits(text: str, value: float, written: str) -> None:
    assert parse_space({}, [f"key={text}"]).varied({"key": value}) == (f"key={written}",)


def test_the_command_line_wins_and_fixed_values_are_shared() -> None:
    space = parse_space(
        {"optimizer.lr": "tag(log, interval(1e-4, 1e-2))", "model.n_layer": "2,4", "seed": 3},
        ["experiments=quickstart", "model.n_layer=8", "data.block_size=64,128"],
    )
    assert space.fixed == ("model.n_layer=8", "seed=3", "experiments=quickstart")
    assert space.overrides({"optimizer.lr": 0.001, "data.block_size": 64}) == (
        *space.fixed,
        "optimizer.lr=0.001",
        "data.block_size=64",
    )
    assert space.corners() == [
        (*space.fixed, "optimizer.lr=0.0001", "data.block_size=64"),
        (*space.fixed, "optimizer.lr=0.01", "data.block_size=128"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("interval(0, inf)", "has no end"),
        ("interval(nan, 1)", "has no end"),
        ("interval(2, 1)", "smaller than the second"),
        ("tag(log, interval(0, 1))", "needs numbers above 0"),
        ("tag(lgo, interval(1, 2))", "tag lgo: the only known tag is log"),
        ("range(1, 5, 0)", "step must not be 0"),
        ("range(5, 1)", "empty"),
        ("interval(1, 2", "not a search space that Hydra can read"),
        ("choice()", "not a search space that Hydra can read"),
    ],
)
def test_a_mistake_names_key_and_value(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_space({"optimizer.lr": text}, [])
    assert str(raised.value).startswith(f"optimizer.lr={text}: ")
    assert message in str(raised.value)


def test_changes_of_the_space_are_described_by_key() -> None:
    before = parse_space(
        {"optimizer.lr": "tag(log, interval(1e-4, 1e-2))", "seed": "range(1, 9)", "model.n_layer": "2,4"}, []
    )
    now = parse_space(
        {"optimizer.lr": "interval(1e-4, 0.1)", "seed": "range(1, 9)", "model.dropout": "range(0, 0.5, 0.1)"}, []
    )
    assert now.changes(now.distributions) == []
    assert now.changes(before.distributions) == [
        "optimizer.lr: 0.0001 … 0.01 (log) → 0.0001 … 0.1",
        "model.n_layer: 2, 4 → not varied",
        "model.dropout: not varied → 0 … 0.4 (by 0.1)",
    ]


def test_a_space_without_varied_keys_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match="nothing to search; give a key several values"):
        parse_space({}, ["optimizer.lr=1"])
