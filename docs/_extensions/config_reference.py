"""Writes the reference of config keys as Markdown, from the files of `conf/` and the signatures of what they build."""

import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml
from config_files import CONF, Choice, Key, choices_of, first_comment, read_yaml
from types_in_words import in_words

from lmtrain.config.check import ROOT
from lmtrain.config.shipped import shipped
from lmtrain.config.signature import TargetError, locate, signature_of

# Plugins are known to Hydra under names of their own. The sweeper of a search takes its settings as a class.
PLUGINS = {
    "hydra_plugins.lmtrain.ProcessLauncher": "lmtrain.sweep.launcher.ProcessLauncher",
    "hydra_plugins.lmtrain.GridSweeper": "lmtrain.sweep.grid_sweeper.GridSweeper",
    "hydra_plugins.lmtrain.OptunaSweeper": "lmtrain.sweep.search.optuna_sweeper.SearchSettings",
}
# The recipes of `prepare` are in the files of `data`, next to the folder that they make.
PREFIXES = {"data": "data.", "prepare": "prepare."}
VALUE_OF = re.compile(r"\$\{(?:oc\.select:)?([a-z_]+\.[\w.]+)(?:,null)?\}")
DATA_FOLDER = "${oc.env:LMTRAIN_DATA,data}"
MAX_SHARE_REPEATED = 0.5  # of a comment's words that a docstring does not have; with fewer, it says nothing new
SPECIAL = re.compile(r"([\\*<\[\]$|])")


def config_choices(group: str) -> str:
    """Return a table of the choices of a group, and below it what their targets say of themselves."""
    choices = choices_of(group)
    lines = ["| choice | what it is |", "|---|---|"]
    lines += [f"| `{group}={choice.name}` | {escaped(choice.summary)} |" for choice in choices]
    users: dict[str, list[str]] = {}
    for choice in choices:
        users.setdefault(choice.targets.get(_package(choice), ""), []).append(choice.name)
    parts = ["\n".join(lines)]
    for target, names in users.items():
        if text := docstring(target):
            parts.append(f"{_listed(names)}: `{target}`\n\n{quoted(text)}")
    return "\n\n".join(parts)


def config_keys(group: str) -> str:
    """Return a section for each key of a config group; `prepare` are the keys that all recipes have in common."""
    choices = choices_of("data" if group == "prepare" else group)
    prefix = PREFIXES.get(group, "")
    found = {
        path: keys
        for path, keys in keys_of(choices).items()
        if path.startswith(prefix) and not path.startswith(f"{prefix}source.")
    }
    if group == "prepare":
        choices = [choice for choice in choices if "prepare" in choice.targets]
    return "\n\n".join(key_section(path, keys, choices) for path, keys in found.items())


def keys_of(choices: Iterable[Choice]) -> dict[str, dict[str, Key]]:
    """Return all keys of some choices, in the order of the files: path → choice → key."""
    found: dict[str, dict[str, Key]] = {}
    for choice in choices:
        for key in choice.keys:
            found.setdefault(key.path, {})[choice.name] = key
    return found


def _package(choice: Choice) -> str:
    """Return the path of the node that a choice fills."""
    package = choice.group.replace("/", ".")
    return f"{package}.{choice.name}" if choice.group == "logger" else package


def docstring(target: str) -> str:
    """Return the docstring of a target of lmtrain's own, without the sections that its arguments and errors have."""
    if not target.startswith("lmtrain."):
        return ""
    text = inspect.getdoc(locate(target)) or ""
    return re.split(r"^(?:Args|Raises|Returns):$", text, flags=re.MULTILINE)[0].strip()


def argument_docs(target: str) -> dict[str, str]:
    """Return what the section `Args:` of a target's docstring says of each argument, as one line each."""
    if not target.startswith("lmtrain."):
        return {}
    text = inspect.getdoc(locate(target)) or ""
    _, _, section = text.partition("\nArgs:\n")
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^    (\w+)(?: \(.*?\))?: (.*(?:\n     +.*)*)", section, flags=re.MULTILINE)
    return {name: " ".join(meaning.split()) for name, meaning in found}


def key_section(path: str, found: Mapping[str, Key], choices: Sequence[Choice]) -> str:
    """Return the section of one key: what it means, what values it takes, and its default in each choice."""
    targets = {choice.name: choice.targets.get(path.rpartition(".")[0], "") for choice in choices}
    return section(
        path,
        meanings={name: meaning_of(key, targets[name]) for name, key in found.items()},
        notes={name: note_on(key, targets[name]) for name, key in found.items()},
        only=_only(found, choices),
        values={name: values_of(key, targets[name]) for name, key in found.items()},
        defaults={name: default_of(key) for name, key in found.items()},
    )


def _only(found: Mapping[str, Key], choices: Sequence[Choice]) -> str:
    """Return which choices have a key, if not all of them have."""
    group, others = choices[0].group, [choice.name for choice in choices if choice.name not in found]
    if not others or group == "logger":  # the key of a logger has its name in it
        return ""
    if len(others) < len(found):
        return f"Not with {_listed(others, f'{group}=')}"
    return f"Only with {_listed([*found], f'{group}=')}"


def section(
    path: str,
    meanings: Mapping[str, str],
    values: Mapping[str, str],
    defaults: Mapping[str, str],
    notes: Mapping[str, str] | None = None,
    only: str = "",
) -> str:
    """Return a section whose heading is a key, which makes its anchor; the mappings have a text for each choice."""
    lines = [f"### `{path}`", ""]
    meaning = _by_choice(meanings)
    lines += [meaning[0], ""] if len(meaning) == 1 else [f"- {text}" for text in meaning]
    lines += [f"- {only}"] if only else []
    lines += [f"- Values: {'; '.join(_by_choice(values))}"] if any(values.values()) else []
    lines += [f"- Default: {'; '.join(_by_choice(defaults, '{text} with {names}'))}"] if any(defaults.values()) else []
    lines += [f"- Note in the YAML file: {'; '.join(_by_choice(notes))}"] if notes and any(notes.values()) else []
    return "\n".join(lines)


def _by_choice(texts: Mapping[str, str], form: str = "{names}: {text}") -> list[str]:
    """Return each text once, with the names of the choices that have it where they differ."""
    users: dict[str, list[str]] = {}
    for name, text in texts.items():
        if text:
            users.setdefault(text, []).append(name)
    return (
        [*users] if len(users) == 1 else [form.format(text=text, names=_listed(names)) for text, names in users.items()]
    )


def meaning_of(key: Key, target: str) -> str:
    """Return what a key means: what the target's docstring says, then the comment in the YAML file."""
    documented = argument_docs(PLUGINS.get(target, target)).get(key.path.rpartition(".")[2], "")
    return sentence(documented or key.comment)


def note_on(key: Key, target: str) -> str:
    """Return the comment in the YAML file where a docstring says what the key means, and the comment says more."""
    words = set(re.findall(r"\w+", key.comment.lower()))
    meaning = meaning_of(key, target)
    new = words - set(re.findall(r"\w+", meaning.lower()))
    is_meaning = meaning == sentence(key.comment)
    return "" if is_meaning or len(new) <= MAX_SHARE_REPEATED * len(words) else escaped(key.comment)


def values_of(key: Key, target: str) -> str:
    """Return in words what values a key takes: from the signature of its target, else from its value."""
    annotation: Any = None
    target = PLUGINS.get(target, target)
    name = key.path.rpartition(".")[2]
    if target.startswith("lmtrain."):
        try:
            parameter = signature_of(target, typed=[name]).parameters.get(name)
        except TargetError:
            parameter = None
        annotation = parameter.annotation if parameter is not None else None
    elif key.path in ROOT:
        annotation = ROOT[key.path].annotation
    value = yaml.safe_load(key.value)
    words = in_words(annotation) if annotation is not None else ""
    if not words and isinstance(value, bool | int | float):
        words = in_words(type(value))
    if key.path == "model.vocab_size":  # the data's size is filled in before the signature is looked at
        words += " or `null`"
    return escaped(words)


def default_of(key: Key) -> str:
    """Return a key's default in words."""
    if key.value == "???":
        return "none, it must be given"
    if found := VALUE_OF.fullmatch(key.value):
        return f"the value of `{found[1]}`"
    return f"`{key.value.replace(DATA_FOLDER, 'data')}`" if key.value else ""


def root_keys() -> str:
    """Return the keys of `conf/config.yaml` itself, without those of Hydra."""
    return _of_config_yaml(lambda path: not path.startswith("hydra."))


def hydra_keys() -> str:
    """Return the settings of Hydra that `conf/config.yaml` gives."""
    return _of_config_yaml(lambda path: path.startswith("hydra."))


def _of_config_yaml(wanted: Any) -> str:
    keys, _ = read_yaml((CONF / "config.yaml").read_text(encoding="utf-8"))
    return "\n\n".join(
        section(key.path, {"": sentence(key.comment)}, {"": values_of(key, "")}, {"": default_of(key)})
        for key in keys
        if wanted(key.path)
    )


def experiment_table() -> str:
    """Return a table of the experiments that are shipped."""
    lines = ["| experiment | what it is |", "|---|---|"]
    for path in sorted(shipped("experiments").glob("*.yaml")):
        summary = first_comment(path.read_text(encoding="utf-8"))
        lines.append(f"| `experiments={path.stem}` | {escaped(summary)} |")
    return "\n".join(lines)


def sentence(text: str) -> str:
    """Return a comment as a sentence of Markdown."""
    if not text:
        return ""
    first = text.split(maxsplit=1)[0].rstrip(",;:")
    if first.isalpha() and first not in ("null", "true", "false", "cuda", "lmtrain"):
        text = text[0].upper() + text[1:]
    return escaped(text if text.endswith((".", "…", "!", "?")) else f"{text}.")


def escaped(text: str) -> str:
    """Return a text with what Markdown would read as markup escaped, except for code in backticks."""
    parts = text.split("`")
    return "`".join(part if number % 2 else SPECIAL.sub(r"\\\1", part) for number, part in enumerate(parts))


def quoted(text: str) -> str:
    """Return a docstring as a quotation."""
    return "\n".join(f"> {line}".rstrip() for line in escaped(text).splitlines())


def _listed(names: Sequence[str], prefix: str = "") -> str:
    names = [f"`{prefix}{name}`" for name in names]
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
