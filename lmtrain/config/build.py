"""Instantiates config nodes; nothing else in lmtrain does."""

import contextlib
from collections.abc import Iterator
from typing import Any

import hydra
from hydra.errors import InstantiationException

from lmtrain.errors import ConfigError, os_error_line


def build(node: Any, *arguments: Any, **objects: Any) -> Any:
    """Instantiate a checked node and return the object, or return a function for a node with `_partial_`.

    The target gets lists and dicts of the config as plain Python objects, and `objects` unchanged. Hydra itself would
    copy them and turn a dataclass into a dict.
    """
    factory = hydra.utils.instantiate({**node, "_partial_": True}, _convert_="all")
    return factory if node.get("_partial_") else factory(*arguments, **objects)


@contextlib.contextmanager
def raising_config_errors() -> Iterator[None]:
    """Turn errors that mean a user's mistake (ValueError, OSError) into ConfigError."""
    try:
        yield
    except InstantiationException as error:  # from a part inside another part, which Hydra builds
        if isinstance(error.__cause__, ValueError):
            raise ConfigError(str(error.__cause__)) from error
        if "Error locating target" in str(error):
            name = str(error).partition("'")[2].partition("'")[0]
            raise ConfigError(
                f"_target_={name}: can't be imported here; start the command in the folder with the module, or add "
                "that folder to PYTHONPATH"
            ) from error
        raise
    except OSError as error:
        raise ConfigError(os_error_line(error)) from error
    except ValueError as error:
        raise ConfigError(str(error)) from error
