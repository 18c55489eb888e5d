"""Reads what the YAML files of `conf/` say: each key with its value and the comment beside it."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import yaml

from lmtrain.config.keys import HYDRA_KEYS
from lmtrain.config.shipped import shipped

CONF = shipped("conf")


@dataclass(frozen=True)
class Key:
    """A key of a config: its dotted path, its value as it is written in the YAML, and the comment beside it."""

    path: str
    value: str
    comment: str


@dataclass(frozen=True)
class Choice:
    """A file of a config group: its name, what its first comment says, what it builds, and its keys in order.

    `targets` are the dotted paths of the classes and functions that it names, by the path of the node that names them.
    """

    group: str
    name: str
    summary: str
    targets: Mapping[str, str]
    keys: Sequence[Key]


def choices_of(group: str) -> list[Choice]:
    """Return the choices of a config group; those that build on another one come last."""
    files = sorted(
        (CONF / group).glob("*.yaml"), key=lambda path: (bool([*_bases(path.read_text("utf-8"))]), path.stem)
    )
    return [read_choice(group, path.stem) for path in files]


def read_choice(group: str, name: str) -> Choice:
    """Return a choice of a config group with the keys of the files that it builds on."""
    text = (CONF / group / f"{name}.yaml").read_text(encoding="utf-8")
    package = re.search(r"^# @package (\S+)$", text, re.MULTILINE)
    prefix = group.replace("/", ".") if package is None else package[1].replace("_global_", "")
    keys, targets = read_yaml(text, prefix)
    for base, base_prefix in _bases(text):
        inherited = read_choice(*base.removeprefix("/").rsplit("/", 1))
        moved = [replace(key, path=_moved(key.path, inherited.group, base_prefix)) for key in inherited.keys]
        own = {key.path for key in keys}
        keys = [*(key for key in moved if key.path not in own), *keys]
        targets = {_moved(path, inherited.group, base_prefix): target for path, target in inherited.targets.items()} | {
            **targets
        }
    return Choice(group, name, first_comment(text), targets, keys)


def _bases(text: str) -> Iterator[tuple[str, str]]:
    """Yield the configs that a file's defaults list takes in, `/group/choice@package`, with their packages."""
    for entry in (yaml.safe_load(text) or {}).get("defaults", []):
        if isinstance(entry, str) and "@" in entry:
            base, _, prefix = entry.partition("@")
            yield base, prefix


def _moved(path: str, group: str, prefix: str) -> str:
    return prefix + path.removeprefix(group.replace("/", "."))


def first_comment(text: str) -> str:
    """Return the comment at the top of a file, as one line, without what is meant for Hydra."""
    lines = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        if "@package" not in line:
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines)


def read_yaml(text: str, prefix: str = "") -> tuple[list[Key], dict[str, str]]:
    """Return the keys of a YAML text, each behind `prefix`, and the targets that it names."""
    keys: list[Key] = []
    targets: dict[str, str] = {}
    root = yaml.compose(text)
    if isinstance(root, yaml.MappingNode):
        _read_mapping(root, prefix, text.splitlines(), keys, targets)
    return keys, targets


def _read_mapping(
    node: yaml.MappingNode, prefix: str, lines: Sequence[str], keys: list[Key], targets: dict[str, str]
) -> None:
    for name, value in node.value:
        path = f"{prefix}.{name.value}" if prefix else name.value
        if name.value == "_target_":
            targets[prefix] = value.value
        if name.value in HYDRA_KEYS or (isinstance(value, yaml.SequenceNode) and name.value == "defaults"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            _read_mapping(value, path, lines, keys, targets)
            continue
        written = text_between(lines, value.start_mark, value.end_mark)
        keys.append(Key(path, written, _comment(lines, name.start_mark, value.end_mark)))


def text_between(lines: Sequence[str], start: yaml.Mark, end: yaml.Mark) -> str:
    """Return what a file has between two places of one line."""
    return lines[start.line][start.column : end.column] if start.line == end.line else ""


def _comment(lines: Sequence[str], key: yaml.Mark, end: yaml.Mark) -> str:
    """Return the comment on a key: lines above it, the end of its line, and the lines that go on below that."""
    above = []
    for line in reversed(lines[: key.line]):
        if not line.startswith(f"{' ' * key.column}# ") or (key.column == 0 and _is_header(lines, line)):
            break
        above.insert(0, line)
    beside = lines[end.line][end.column :] if end.line < len(lines) else ""
    below = []
    for line in lines[end.line + 1 :]:
        indent = len(line) - len(line.lstrip())
        if not line.lstrip().startswith("#") or indent <= key.column:
            break
        below.append(line)
    # Lines that are indented below a comment are a list.
    parts = [re.sub(r"^#\s{2,}", "; ", line.strip()).removeprefix("#").lstrip(" ") for line in [*above, beside, *below]]
    return " ".join(part for part in parts if part).replace(" ; ", "; ")


def _is_header(lines: Sequence[str], line: str) -> bool:
    """Return whether a line belongs to the comment at the top of the file, which is about all of it."""
    header = next((number for number, text in enumerate(lines) if not text.startswith("#")), len(lines))
    return line in lines[:header]
