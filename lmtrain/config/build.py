"""Builds what a config node names: the only place that instantiates."""

import contextlib
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.errors import InstantiationException

from lmtrain.errors import ConfigError, os_error_line


def build(node: Any, *arguments: Any, **objects: Any) -> Any:
    """Instantiate one checked node; a node with `_partial_` stays a function. Nothing else instantiates nodes.

    Lists and dicts of the config reach the target as plain ones, and `objects` as they are: Hydra itself would
    copy them, and turn a dataclass among them into a dict.
    """
    factory = hydra.utils.instantiate({**node, "_partial_": True}, _convert_="all")
    return factory if node.get("_partial_") else factory(*arguments, **objects)


@contextlib.contextmanager
def raising_config_errors() -> Iterator[None]:
    """Turn the errors that building parts raises for a user's mistake (ValueError, OSError) into ConfigError."""
    try:
        yield
    except InstantiationException as error:  # of a part of a part, which Hydra builds
        if isinstance(error.__cause__, ValueError):
            raise ConfigError(str(error.__cause__)) from error
        if "Error locating target" in str(error):
            name = str(error).partition("'")[2].partition("'")[0]
            raise ConfigError(
                f"_target_={name}: can't be imported here; give the command in the folder that has the module, or with "
                "that folder in PYTHONPATH"
            ) from error
        raise
    except OSError as error:
        raise ConfigError(os_error_line(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
