"""Computes how large a config becomes when its interpolations are resolved, without resolving them.

OmegaConf resolves an interpolation again at every reference to it, so that thirty lines like `a: ${b}${b}` never end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from omegaconf.grammar_parser import parse

MAX_SIZE = 1_000_000  # the shipped configs are smaller than 1,000
REFERENCE_SIZE = 100  # of a reference, where a character has size 1: OmegaConf needs a millisecond for each reference

Path = tuple[Any, ...]  # keys and indices from the root
Keys = tuple[str | None, ...]  # of a reference; None means an interpolation


def check_resolved_size(container: Any) -> None:
    """Check that a config, given as a plain container with its interpolations unresolved, can be resolved.

    A key that is itself an interpolation, as in `${rates.${size}}`, counts as the largest key that it may mean.

    Raises:
        ValueError: The config would be too large, or refers to itself; the message begins with the key.
        GrammarParseError: An interpolation can't be parsed.
    """
    _Sizes(container).of(())


@dataclass(frozen=True)
class _Reference:
    """A reference such as `${.a.b}`: the number of dots at its start, its keys, and the references inside the keys."""

    dots: int
    keys: Keys
    inner: tuple["_Reference", ...]


class _Sizes:
    """Computes and caches the size of each node of a config, by path; None marks a node in progress."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.known: dict[Path, int | None] = {}
        self.steps = 0

    def of(self, path: Path) -> int:
        if path not in self.known:
            self.known[path] = None
            node = self._at(path)
            size = 1 + sum(self.of((*path, key)) for key in _keys(node))
            if isinstance(node, str):
                size += len(node) + sum(self._of_reference(each, path) for each in _references(node))
            if size > MAX_SIZE:
                raise ValueError(f"{_dotted(path)}: resolving its interpolations would take too long")
            self.known[path] = size
        if (known := self.known[path]) is None:
            raise ValueError(f"{_dotted(path)}: refers to itself")
        return known

    def _of_reference(self, reference: _Reference, path: Path, rest: Keys = ()) -> int:
        """Return the size of the target of a reference in the string at `path`; the keys `rest` follow its own."""
        inner = sum(self._of_reference(each, path) for each in reference.inner)
        start = path[: -reference.dots] if reference.dots else ()
        return REFERENCE_SIZE + inner + self._of_target(start, (*reference.keys, *rest))

    def _of_target(self, path: Path, rest: Keys) -> int:
        """Return the size of the node that the keys `rest` lead to from `path`."""
        self.steps += 1
        if self.steps > MAX_SIZE:
            raise ValueError(f"{_dotted(path)}: resolving its interpolations would take too long")
        if not rest:
            return self.of(path)
        node = self._at(path)
        if isinstance(node, str):  # the keys continue at the target of another reference
            references = _references(node)
            return self._of_reference(references[0], path, rest) if len(references) == 1 else self.of(path)
        if rest[0] is None:
            children = [((*path, key), rest[1:]) for key in _keys(node)]
            # A child whose size is in progress can't be the target, because it refers to this node.
            able = [(child, keys) for child, keys in children if keys or self.known.get(child, 0) is not None]
            return max((self._of_target(child, keys) for child, keys in able), default=0)
        key = int(rest[0]) if isinstance(node, list) and rest[0].isdecimal() else rest[0]
        return self._of_target((*path, key), rest[1:]) if key in _keys(node) else 0

    def _at(self, path: Path) -> Any:
        node = self.root
        for key in path:
            node = node[key]
        return node


@cache
def _references(text: str) -> tuple[_Reference, ...]:
    return tuple(_outermost(parse(text))) if "${" in text else ()


def _outermost(tree: Any) -> Iterator[_Reference]:
    """Yield the references in a parse tree that are not inside the key of another reference."""
    for node in getattr(tree, "children", None) or ():
        if type(node).__name__ != "InterpolationNodeContext":
            yield from _outermost(node)
            continue
        keys = [piece for piece in node.children if type(piece).__name__ == "ConfigKeyContext"]
        dots = sum(piece.getText() == "." for piece in node.children[: node.children.index(keys[0])])
        yield _Reference(
            dots,
            tuple(None if "${" in key.getText() else key.getText() for key in keys),
            tuple(inner for key in keys for inner in _outermost(key)),
        )


def _keys(node: Any) -> Any:
    return node.keys() if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()


def _dotted(path: Path) -> str:
    return ".".join(map(str, path)) or "the config"
