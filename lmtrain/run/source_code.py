"""Hashes the source code outside lmtrain that a run's config names, and finds files that have changed since."""

import ast
import hashlib
import importlib.util
import os
import sysconfig
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

import lmtrain
from lmtrain.terminal.paths import short_path

LMTRAIN = Path(lmtrain.__file__).resolve().parent
STDLIB = Path(sysconfig.get_path("stdlib")).resolve()
INSTALLED = frozenset({"site-packages", "dist-packages"})  # the folders' names
# Folders that no training run uses. A part that a config names stands in one of the others.
NOT_TRAINING = frozenset({"commands", "api", "mcp", "decide", "sweep", "benchmark", "comparison", "convert", "verify"})
HASH_DIGITS = 16
MAX_MODULES = 300  # per target: a checkout of torch or transformers has thousands, which take minutes to parse

SourceHashes = Mapping[str, Mapping[str, str]]


def source_hashes(config: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return, for the key of each `_target_` outside lmtrain, the hash of every source file it depends on, by module.

    This covers the target's module, its parent packages, and all modules that these import directly or indirectly with
    an import statement, up to the nearest `MAX_MODULES`. It does not cover the standard library, installed packages,
    modules imported by a computed name, or files that the code reads.
    """
    known: dict[str, _Module | None] = {}  # two targets may share thousands of modules
    found = {key: _module_hashes(target.rpartition(".")[0], known) for key, target in targets(config)}
    return {key: hashes for key, hashes in found.items() if hashes}


def changed_sources(then: SourceHashes, now: SourceHashes) -> dict[str, list[str]]:
    """Return, for each key, the files that belonged to its target at both times but differ."""
    changed = {}
    for key in then.keys() & now.keys():
        modules = [module for module, digest in now[key].items() if then[key].get(module, digest) != digest]
        if files := [short_path(path) for module in modules if (path := _source_of(module)) is not None]:
            changed[key] = files
    return dict(sorted(changed.items()))


def targets(config: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Yield the key and the value of every `_target_` outside lmtrain."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            if key != "_target_":
                yield from targets(value, f"{path}{key}.")
            elif isinstance(value, str) and not value.startswith("lmtrain."):
                yield f"{path}{key}", value
    elif isinstance(config, list):
        for number, value in enumerate(config):
            yield from targets(value, f"{path}{number}.")


def lmtrain_hash() -> str:
    """Return a hash of the source code that trains a run, which in a checkout changes more often than the version.

    Code that only starts, compares or measures runs is left out: to change it makes no other run.
    """
    digest = hashlib.sha256()
    for path in sorted(LMTRAIN.rglob("*.py")):
        inside = path.relative_to(LMTRAIN)
        if inside.parts[0] not in NOT_TRAINING:
            digest.update(f"{inside}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:HASH_DIGITS]


@dataclass(frozen=True)
class _Module:
    digest: str
    imported: frozenset[str]


def _module_hashes(target: str, known: dict[str, _Module | None]) -> dict[str, str]:
    """Return the hashes of a module and its imports. `known` caches modules already read, and is extended."""
    hashes: dict[str, str] = {}
    waiting = deque(_with_packages(target))
    seen = set(waiting)
    while waiting and len(hashes) < MAX_MODULES:
        name = waiting.popleft()
        if name not in known:
            known[name] = _read_module(name)
        if (module := known[name]) is None:
            continue
        hashes[name] = module.digest
        waiting += sorted(module.imported - seen)
        seen |= module.imported
    return dict(sorted(hashes.items()))


def _read_module(name: str) -> _Module | None:
    if (path := _source_of(name)) is None:
        return None
    source = path.read_bytes()
    imported = {each for found in _imports(source, name, path) for each in _with_packages(found)}
    return _Module(hashlib.sha256(source).hexdigest()[:HASH_DIGITS], frozenset(imported))


def _with_packages(module: str) -> Iterator[str]:
    """Yield `a`, `a.b` and `a.b.c` for `a.b.c`, because importing a module runs its parent packages."""
    parts = module.split(".")
    yield from (".".join(parts[: size + 1]) for size in range(len(parts)))


def _source_of(module: str) -> Path | None:
    """Return the file of one of the user's own modules, or None for any other module."""
    spec = _find_without_importing(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    path = Path(spec.origin).resolve()
    own = path.is_file() and not INSTALLED & {*path.parts} and not {LMTRAIN, STDLIB} & {*path.parents}
    return path if own else None


def _find_without_importing(module: str) -> ModuleSpec | None:
    """Return the spec of a module like `importlib.util.find_spec`, but without importing its parent packages."""
    name, *rest = module.split(".")
    try:
        spec = importlib.util.find_spec(name)
        folders = [] if spec is None else [*(spec.submodule_search_locations or ())]
        for part in rest:
            name = f"{name}.{part}"
            try:
                spec = PathFinder.find_spec(name, folders)
            except KeyError:  # a namespace package (no __init__.py) whose parent has not been imported
                spec, folders = None, [os.path.join(folder, part) for folder in folders]
            else:
                folders = [] if spec is None else [*(spec.submodule_search_locations or ())]
    except (ImportError, ValueError):  # a module created by code has no spec
        return None
    return spec


def _imports(source: bytes, module: str, path: Path) -> Iterator[str]:
    """Yield the full names in all import statements; some may be names inside a module, not modules."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    try:
        nodes = [*ast.walk(ast.parse(source))]
    except (SyntaxError, ValueError):  # such a module can't be imported either
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*around, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))
