"""Reads the signature of a `_target_` from its source, and imports the target only if the source is not enough.

Importing a model imports torch, which takes seconds, but a misspelt key should be reported at once. Therefore plain
functions and classes are read from their syntax tree. Anything less plain (a decorator, an inherited `__init__`, a
needed annotation from a heavy module) is imported and inspected. Both ways give the same signature.
"""

import ast
import builtins
import difflib
import importlib
import importlib.util
import inspect
import sys
import typing
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# Modules that annotations may use and that are cheap to import.
LIGHT_MODULES = sys.stdlib_module_names | {"annotated_types", "pydantic"}

_UNKNOWN = object()  # an annotation or a default that can't be read from the source


@dataclass(frozen=True)
class Parameter:
    """A parameter of a target; `annotation` is `Any` if there is none, and `default` is an object if it is unknown.

    A `positional_only` parameter cannot be set in a config.
    """

    annotation: Any
    required: bool
    default: Any = field(default=None, compare=False)
    positional_only: bool = False


@dataclass(frozen=True)
class Signature:
    """The parameters of a target, in order; `open` if it accepts `**kwargs`."""

    parameters: Mapping[str, Parameter]
    open: bool


class TargetError(ValueError):
    """A `_target_` that can't be found; the message says what is missing and which name is nearest."""


class _NotPlainError(Exception):
    """The signature can't be read from the source alone."""


def signature_of(target: str, typed: Collection[str]) -> Signature:
    """Return the signature of the callable named by a `_target_`; parameters in `typed` have their annotations.

    Raises:
        TargetError: The module or attribute does not exist, or it can't be imported or called.
    """
    try:
        signature = _read(target)
    except _NotPlainError:
        return _inspect(locate(target))
    if any(parameter.annotation is _UNKNOWN and name in typed for name, parameter in signature.parameters.items()):
        return _inspect(locate(target))
    return signature


def locate(target: str) -> Any:
    """Import and return the object behind a dotted path."""
    parts = target.split(".")
    for size in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:size])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            # In `a.b.C`, `b` may be a class: try the shorter path. Any other missing module is a mistake.
            if error.name is not None and (module_name == error.name or module_name.startswith(error.name + ".")):
                continue
            raise TargetError(f"importing {module_name} needs the module {error.name!r}, which is missing") from error
        except Exception as error:
            raise TargetError(f"importing {module_name} failed: {type(error).__name__}: {error}") from error
        for name in parts[size:]:
            if not hasattr(found, name):
                raise _no_attribute(getattr(found, "__name__", str(found)), name, dir(found))
            found = getattr(found, name)
        if not callable(found):
            raise TargetError(f"{target} is not a class or a function")
        return found
    raise TargetError(f"no module {'.'.join(parts[:-1]) or target!r} in {Path.cwd()} or in the installed packages")


def _no_attribute(owner: str, name: str, there: list[str]) -> TargetError:
    nearest = difflib.get_close_matches(name, there, n=1)
    return TargetError(f"{owner} has no {name!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else ""))


def _inspect(found: Any) -> Signature:
    try:
        parameters = inspect.signature(found).parameters
    except (TypeError, ValueError):  # a callable written in C has no signature to check against
        return Signature({}, open=True)
    try:
        hints = typing.get_type_hints(found.__init__ if inspect.isclass(found) else found, include_extras=True)
    except Exception:  # an annotation can only be evaluated by a type checker
        hints = {}
    return Signature(
        {
            name: Parameter(
                hints.get(name, _from_default(parameter.default)),
                required=parameter.default is inspect.Parameter.empty,
                default=parameter.default,
                positional_only=parameter.kind is inspect.Parameter.POSITIONAL_ONLY,
            )
            for name, parameter in parameters.items()
            if parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        },
        open=any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()),
    )


def _from_default(default: Any) -> Any:
    """Return the type of a plain default, to be used for a parameter without an annotation."""
    return type(default) if isinstance(default, bool | int | float | str) else Any


def _read(target: str) -> Signature:
    module_name, _, name = target.rpartition(".")
    module = sys.modules.get(module_name)
    if module is not None and hasattr(module, name):
        return _inspect(locate(target))
    tree = _tree(module_name)
    definitions = [node for node in tree.body if getattr(node, "name", None) == name]
    bound = _bound(tree)
    if len(definitions) != 1 or bound[name] != 1:
        plain = [node for node in tree.body if isinstance(node, ast.ClassDef | ast.FunctionDef)]
        if name not in ast.unparse(tree) and "*" not in bound and not any(node.name == "__getattr__" for node in plain):
            raise _no_attribute(module_name, name, [node.name for node in plain])
        raise _NotPlainError  # bound twice, or not by a plain def: only an import can tell
    definition = definitions[0]
    if isinstance(definition, ast.ClassDef):
        if definition.decorator_list or definition.keywords:
            raise _NotPlainError
        methods = {node.name: node for node in definition.body if isinstance(node, ast.FunctionDef)}
        if not definition.bases and not {"__init__", "__new__"} & _bound(ast.Module(definition.body, [])).keys():
            return Signature({}, open=False)
        if "__init__" not in methods or "__new__" in methods:
            raise _NotPlainError
        function, skip = methods["__init__"], 1  # self
    elif isinstance(definition, ast.FunctionDef):
        function, skip = definition, 0
    else:
        raise _NotPlainError
    if function.decorator_list:
        raise _NotPlainError
    return _read_function(function, skip, _Names(tree, module_name.partition(".")[0]))


def _tree(module_name: str) -> ast.Module:
    """Return the syntax tree of a module that is not imported."""
    try:
        spec = importlib.util.find_spec(module_name)
    except Exception as error:  # find_spec imports the parent packages; `locate` reports what is wrong with them
        raise _NotPlainError from error
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise _NotPlainError
    try:
        return ast.parse(Path(spec.origin).read_bytes())
    except SyntaxError as error:
        raise TargetError(f"{spec.origin}, line {error.lineno}: {error.msg}") from error


def _read_function(function: ast.FunctionDef, skip: int, names: "_Names") -> Signature:
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True)][skip:]
    pairs += zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return Signature(
        {
            argument.arg: Parameter(
                names.annotation(argument, default),
                default is None,
                _literal(default),
                positional_only=argument in arguments.posonlyargs,
            )
            for argument, default in pairs
        },
        open=arguments.kwarg is not None,
    )


def _literal(default: ast.expr | None) -> Any:
    """Return the value of a default that is written out."""
    try:
        return ast.literal_eval(default) if default is not None else _UNKNOWN
    except ValueError:
        return _UNKNOWN


def _bound(tree: ast.Module) -> Counter[str]:
    """Return how often the module scope binds each name; "*" means a star import."""
    names: Counter[str] = Counter()
    nodes: list[ast.AST] = [*tree.body]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names[node.name] += 1
            continue
        if isinstance(node, ast.alias):
            names[node.asname or node.name.split(".")[0]] += 1
        elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            names[node.id] += 1
        nodes.extend(ast.iter_child_nodes(node))
    return names


def _has_quotes(annotation: Any) -> bool:
    """Return whether an annotation contains a forward reference, which only its module can resolve."""
    if isinstance(annotation, str | typing.ForwardRef):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return False
    return any(_has_quotes(argument) for argument in (arguments[:1] if origin is typing.Annotated else arguments))


class _Names(dict[str, Any]):
    """Looks up the names in annotations: builtins, imports from light modules, and plain aliases.

    The aliases may be the module's own, or those of another module in the same package, whose source is read as well.
    """

    def __init__(self, tree: ast.Module, package: str) -> None:
        super().__init__()
        self.package = package
        self.bound = _bound(tree)
        self.origins: dict[str, tuple[str, str | None]] = {}
        self.aliases: dict[str, ast.expr] = {}
        for node in tree.body:
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.origins[alias.asname or alias.name.split(".")[0]] = (alias.name, None)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                for alias in node.names:
                    self.origins[alias.asname or alias.name] = (node.module, alias.name)
            elif isinstance(node, ast.Assign) and len(node.targets) == 1 and isinstance(node.targets[0], ast.Name):
                self.aliases[node.targets[0].id] = node.value

    def __missing__(self, name: str) -> Any:
        if self.bound[name] > 1:
            raise _NotPlainError
        if not self.bound[name] and "*" not in self.bound and hasattr(builtins, name):
            return getattr(builtins, name)
        if name in self.aliases:
            return self._evaluate(ast.unparse(self.aliases[name]))
        module, attribute = self.origins.get(name, ("", None))
        package = module.split(".")[0]
        if attribute and package == self.package and package not in LIGHT_MODULES:
            return _Names(_tree(module), package)[attribute]
        if package not in LIGHT_MODULES:
            raise _NotPlainError
        found = importlib.import_module(module)
        return getattr(found, attribute) if attribute else found

    def annotation(self, argument: ast.arg, default: ast.expr | None) -> Any:
        try:
            if argument.annotation is None:
                return _from_default(ast.literal_eval(default)) if default is not None else Any
            node = argument.annotation
            quoted = isinstance(node, ast.Constant) and isinstance(node.value, str)
            found = self._evaluate(node.value if quoted else ast.unparse(node))  # type: ignore[attr-defined]
            return _UNKNOWN if _has_quotes(found) else found
        except Exception:  # a heavy module, a name that exists only for type checkers, or a computed default
            return _UNKNOWN

    def _evaluate(self, source: str) -> Any:
        return eval(source, {"__builtins__": {}}, self)
