"""Translates a search space in Hydra's sweep syntax into Optuna's distributions."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import as_written

DIGITS = 4
TAGS = frozenset({"log"})


@dataclass(frozen=True)
class SearchSpace:
    """The distribution of each key that a search varies, and the overrides that all trials share."""

    fixed: tuple[str, ...]
    distributions: Mapping[str, BaseDistribution]

    def overrides(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the overrides of the trial with these values; equal values give equal overrides."""
        return (*self.fixed, *self.varied(params))

    def varied(self, params: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the overrides of the keys that the search varies."""
        drawn = {key: short_number(params[key], each) for key, each in self.distributions.items()}
        return tuple(f"{key}={as_written(value)}" for key, value in drawn.items())

    def corners(self) -> list[tuple[str, ...]]:
        """Return two trials, at the lower and the upper ends of all ranges; checking them finds mistakes in a range."""
        return [self.overrides({key: ends[at] for key, ends in self._ends().items()}) for at in (0, -1)]

    def size(self) -> float:
        """Return the number of different trials; infinite if a range is continuous."""
        return math.prod(map(_number_of_values, self.distributions.values()))

    def changes(self, before: Mapping[str, BaseDistribution]) -> list[str]:
        """Return the differences from an earlier search space, one text per key."""
        keys = {**before, **self.distributions}
        return [
            f"{key}: {describe(before.get(key))} → {describe(self.distributions.get(key))}"
            for key in keys
            if before.get(key) != self.distributions.get(key)
        ]

    def _ends(self) -> dict[str, Sequence[Any]]:
        return {
            key: each.choices if isinstance(each, CategoricalDistribution) else (each.low, each.high)  # type: ignore[attr-defined]
            for key, each in self.distributions.items()
        }


def describe(distribution: BaseDistribution | None) -> str:
    """Return a distribution in words, such as `0.0001 … 0.01 (log)`."""
    match distribution:
        case CategoricalDistribution(choices=choices):
            return ", ".join(map(str, choices))
        case (
            FloatDistribution(low=low, high=high, step=step, log=log)
            | IntDistribution(low=low, high=high, step=step, log=log)
        ):
            return f"{low:g} … {high:g}" + (" (log)" if log else f" (by {step:g})" if step and step != 1 else "")
    return "not varied"


def short_number(value: Any, distribution: BaseDistribution) -> Any:
    """Return a drawn number rounded to four significant digits of the value or the range, whichever is finer.

    With all seventeen digits, the names of runs and their commands would be hard to read. Other values, and values that
    rounding would move out of the range, are returned unchanged.
    """
    match distribution:
        case FloatDistribution(low=low, high=high, step=step) if low < high:
            unit = min(filter(None, (abs(value), high - low, step)))
            rounded = round(value, DIGITS - 1 - math.floor(math.log10(unit)))
            if (low <= rounded <= high) == (low <= value <= high):
                return rounded
    return value


def parse_space(
    params: Mapping[str, Any], arguments: Sequence[str], config_loader: ConfigLoader | None = None
) -> SearchSpace:
    """Return the search space in `hydra.sweeper.params` and on the command line, which overrides it.

    `interval(a, b)` is continuous, and `int(interval(a, b))` has the whole numbers from a to b; `tag(log, …)` makes
    either logarithmic. `range(a, b, step)` excludes b, as everywhere in Hydra. `choice(a, b)` and `a,b` are choices
    without an order. Any other value is shared by all trials.

    Raises:
        ConfigError: a key's values cannot be parsed, are empty or have no end, or no key varies; the message names key
            and value.
    """
    parser = OverridesParser.create(config_loader)
    found: dict[str, Override] = {}
    for text in (*(f"{key}={'null' if value is None else value}" for key, value in params.items()), *arguments):
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(
                f"{text}: not a search space that Hydra can read ({reason}); write interval(a, b), "
                "int(interval(a, b)), tag(log, interval(a, b)), range(a, b) or choice(a, b)"
            ) from error
        found[override.get_key_element()] = override
    fixed, distributions = [], {}
    for key, override in found.items():
        if override.is_sweep_override():
            try:
                distributions[key] = _distribution(override)
            except (ValueError, HydraException) as error:
                raise ConfigError(f"{override.input_line}: {error}") from error
        else:
            fixed.append(str(override.input_line))
    if not distributions:
        raise ConfigError(
            "hydra.sweeper.params={}: nothing to search; give a key several values, as in "
            "'optimizer.lr=tag(log, interval(1e-4, 1e-2))' or model.n_layer=2,4"
        )
    return SearchSpace(tuple(fixed), distributions)


def _distribution(override: Override) -> BaseDistribution:
    value = override.value()
    if isinstance(value, IntervalSweep):
        return _interval(value)
    if isinstance(value, RangeSweep):
        return _range(value)
    choices = list(override.sweep_iterator(transformer=Transformer.encode))
    if not choices:
        raise ValueError("there are no choices")
    return CategoricalDistribution(choices)  # type: ignore[arg-type]


def _interval(value: IntervalSweep) -> BaseDistribution:
    low, high, log = value.start, value.end, "log" in value.tags
    assert low is not None
    assert high is not None
    if unknown := value.tags - TAGS:
        raise ValueError(f"tag {', '.join(sorted(unknown))}: the only known tag is log")
    if not (math.isfinite(low) and math.isfinite(high)):
        raise ValueError("has no end; give two finite numbers")
    if low >= high:
        raise ValueError("the first number must be smaller than the second")
    if log and low <= 0:
        raise ValueError("a logarithmic scale needs numbers above 0")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    return FloatDistribution(low, high, log=log)


def _range(value: RangeSweep) -> BaseDistribution:
    if not value.step:
        raise ValueError("the step must not be 0")
    numbers = sorted(value.range())
    if not numbers:
        raise ValueError("the range is empty")
    low, high, step = numbers[0], numbers[-1], abs(value.step)
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, step=int(step))
    return FloatDistribution(low, high, step=step)


def _number_of_values(each: BaseDistribution) -> float:
    match each:
        case CategoricalDistribution(choices=choices):
            return len(choices)
        case IntDistribution(low=low, high=high, step=step):
            return (high - low) // step + 1
        case FloatDistribution(low=low, high=high, step=float(step)):
            return round((high - low) / step) + 1
    return math.inf
