"""Writes the blocks that have Sphinx document objects of lmtrain from their docstrings."""

import inspect
import re
from typing import Any

import lmtrain
from lmtrain.config.signature import locate


def python_api() -> str:
    """Return a block for each name that `lmtrain` itself offers: functions first, then classes, then errors."""
    return "\n\n".join(_block(f"lmtrain.{name}", getattr(lmtrain, name)) for name in public_names())


def python_object(path: str) -> str:
    """Return a block for the object at a dotted path."""
    return _block(path, locate(path))


def public_names() -> list[str]:
    """Return what `lmtrain` offers, functions first, then classes, then errors."""
    names = [name for name in lmtrain.__all__ if name != "__version__"]
    return sorted(names, key=lambda name: (_kind(getattr(lmtrain, name)), name))


def api_as_text() -> str:
    """Return what `python_api` has documented, as Markdown."""
    return "\n\n".join(_as_text(f"lmtrain.{name}", getattr(lmtrain, name)) for name in public_names())


def object_as_text(path: str) -> str:
    """Return what `python_object` has documented, as Markdown."""
    return _as_text(path, locate(path))


def _as_text(path: str, found: Any) -> str:
    parts = [f"`{path}{_parameters(found)}`", inspect.getdoc(found) or ""]
    for name, member in vars(found).items() if inspect.isclass(found) else ():
        if not name.startswith("_") and (text := inspect.getdoc(member)) and _is_documented(member):
            parts.append(f"`{path.rpartition('.')[2]}.{name}{_parameters(member)}`\n\n{text}")
    return "\n\n".join(parts)


def _is_documented(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, property | classmethod | staticmethod)


def _parameters(found: Any) -> str:
    """Return the parameters of a callable in brackets, without their types; '' for a property or an error."""
    if not callable(found) or _is_error(found):
        return ""
    signature = inspect.signature(found)
    plain = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in signature.parameters.values()]
    return str(signature.replace(parameters=plain, return_annotation=inspect.Signature.empty))


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
