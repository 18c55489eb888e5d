"""Expands a sweep's values into the overrides of its jobs, one job per combination."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException

from lmtrain.config.hydra_internals import split_into_batches
from lmtrain.config.written_for.mismatches import FORK
from lmtrain.errors import ConfigError


@dataclass(frozen=True)
class Grid:
    """The overrides of each job of a sweep, in batches, and the swept keys."""

    batches: list[list[list[str]]]
    swept: frozenset[str]

    def jobs(self) -> list[list[str]]:
        """Return the overrides of all jobs, in order."""
        return [overrides for batch in self.batches for overrides in batch]


def expand_grid(
    params: Mapping[str, Any], arguments: Sequence[str], config_loader: ConfigLoader, max_batch_size: int | None = None
) -> Grid:
    """Return all combinations of the values in `params` (from an experiment) and then in `arguments`.

    Raises:
        ConfigError: an override cannot be parsed, or is an interval, which needs a search.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    try:
        parsed = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *arguments])
        for override in parsed:
            if override.is_interval_sweep():
                raise ConfigError(
                    f"{override.input_line}: a sweep needs single values; write a,b or range(a, b, step), or search "
                    "the interval with hydra/sweeper=optuna"
                )
        swept = frozenset(override.get_key_element() for override in parsed if override.is_sweep_override())
        batches = [
            [_in_given_order(parsed, overrides) for overrides in batch]
            for batch in split_into_batches(parsed, max_batch_size)
        ]
        return Grid(batches, swept)
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error


def _in_given_order(parsed: Sequence[Override], job: Sequence[str]) -> list[str]:
    """Return a job's overrides in the order of the command, for a fork with those of its parent that it replaces.

    Hydra puts the last value of a key into the place of the first. But a fork has two parts: what its parent was
    started with, and what the fork changes of it.
    """
    keys = [override.get_key_element() for override in parsed]
    values = dict(zip(dict.fromkeys(keys), job, strict=True))
    start_of_fork = next((at for at, each in enumerate(parsed) if str(each.input_line).startswith(FORK)), 0)
    ordered = []
    for at, (key, override) in enumerate(zip(keys, parsed, strict=True)):
        if key not in keys[at + 1 :]:
            ordered.append(values[key])
        elif at < start_of_fork and not override.is_sweep_override():
            ordered.append(str(override.input_line))
    return ordered
