"""Writes the blocks that have Sphinx document objects of lmtrain from their docstrings."""

import inspect
import re
from typing import Any

import lmtrain
from lmtrain.config.signature import locate


def python_api() -> str:
    """Return a block for each name that `lmtrain` itself offers: functions first, then classes, then errors."""
    names = [name for name in getattr(lmtrain, "__all__", ()) if name != "__version__"]
    ordered = sorted(names, key=lambda name: (_kind(getattr(lmtrain, name)), name))
    return "\n\n".join(_block(f"lmtrain.{name}", getattr(lmtrain, name)) for name in ordered)


def python_object(path: str) -> str:
    """Return a block for the object at a dotted path."""
    return _block(path, locate(path))


def _kind(found: Any) -> int:
    return 2 if _is_error(found) else 1 if inspect.isclass(found) else 0


def _is_error(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, BaseException)


def _block(path: str, found: Any) -> str:
    directive = ("autofunction", "autoclass", "autoexception")[_kind(found)]
    options = "\n   :members:" if directive == "autoclass" else ""
    return f"```{{eval-rst}}\n.. {directive}:: {path}{options}\n```"


def readable_signature(
    app: Any, what: str, name: str, found: Any, options: Any, signature: str | None, returned: str | None
) -> tuple[str | None, str | None]:
    """Return a signature without the limits of its values, which the reference of config keys has in words."""
    return (re.sub(r"Annotated\[(\w+), [^\[\]]*\]", r"\1", signature) if signature else signature), returned
