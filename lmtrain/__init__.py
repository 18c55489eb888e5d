"""A Hydra-composed experiment toolkit for training language models.

`from lmtrain import compose, train, load_run, compare` is the Python API. Importing lmtrain itself imports neither
torch nor Hydra: each name is loaded when it is first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # type checkers and editors see the names here; at run time `__getattr__` finds them
    from lmtrain.api.comparison import Comparison, Setting, Verdict, compare
    from lmtrain.api.training import compose, train
    from lmtrain.errors import ConfigError
    from lmtrain.run.reading.loaded import Evaluation, LoadedModel
    from lmtrain.run.reading.stored_run import Run, load_run, read_metrics

    __version__: str
else:  # hidden from type checkers, which would take it as saying that every name is there

    def __getattr__(name: str) -> Any:
        if name == "__version__":
            value: Any = _version()
        elif name in _MODULES:
            value = getattr(importlib.import_module(_MODULES[name]), name)
        else:
            raise AttributeError(f"module 'lmtrain' has no attribute {name!r}")
        globals()[name] = value
        return value


__all__ = [
    "Comparison",
    "ConfigError",
    "Evaluation",
    "LoadedModel",
    "Run",
    "Setting",
    "Verdict",
    "__version__",
    "compare",
    "compose",
    "load_run",
    "read_metrics",
    "train",
]

_MODULES = {
    "Comparison": "lmtrain.api.comparison",
    "ConfigError": "lmtrain.errors",
    "Evaluation": "lmtrain.run.reading.loaded",
    "LoadedModel": "lmtrain.run.reading.loaded",
    "Run": "lmtrain.run.reading.stored_run",
    "Setting": "lmtrain.api.comparison",
    "Verdict": "lmtrain.api.comparison",
    "compare": "lmtrain.api.comparison",
    "compose": "lmtrain.api.training",
    "load_run": "lmtrain.run.reading.stored_run",
    "read_metrics": "lmtrain.run.reading.stored_run",
    "train": "lmtrain.api.training",
}


def _version() -> str:
    from importlib.metadata import PackageNotFoundError, version  # takes as long to import as all of `--help` does

    try:
        return version("lmtrain")
    except PackageNotFoundError:  # a checkout on the path, never installed
        return "0+unknown"


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
