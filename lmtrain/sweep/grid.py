"""All combinations of a sweep's values, as the command lines of its jobs."""

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
    """The overrides of each job of a sweep, in batches, and the keys that are swept."""

    batches: list[list[list[str]]]
    swept: frozenset[str]

    def jobs(self) -> list[list[str]]:
        """Return the overrides of all jobs in their order."""
        return [overrides for batch in self.batches for overrides in batch]


def expand_grid(
    params: Mapping[str, Any], arguments: Sequence[str], config_loader: ConfigLoader, max_batch_size: int | None = None
) -> Grid:
    """Return all combinations of the values; `params` are an experiment's, which the arguments go after.

    Raises:
        ConfigError: an override that can't be parsed, or an interval, which only a search takes.
    """
    parser = OverridesParser.create(config_loader=config_loader)
    try:
        parsed = parser.parse_overrides([*(f"{key}={value}" for key, value in params.items()), *arguments])
        for override in parsed:
            if override.is_interval_sweep():
                raise ConfigError(
                    f"{override.input_line}: a sweep takes single values, a,b or range(a, b, step); an interval is "
                    "for a search, hydra/sweeper=optuna"
                )
        swept = frozenset(override.get_key_element() for override in parsed if override.is_sweep_override())
        return Grid(split_into_batches(parsed, max_batch_size), swept)
    except HydraException as error:
        raise ConfigError(" ".join(str(error).split())) from error
