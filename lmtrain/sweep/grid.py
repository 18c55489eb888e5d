"""Expands a sweep's values into the overrides of its jobs, one job per combination."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lmtrain.config.hydra_internals import split_into_batches
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
        return Grid(split_into_batches(parsed, max_batch_size), swept)
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
