"""Makes short, distinct one-line names for runs, settings and values."""

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lmtrain.terminal.as_text import rounded

MAX_LABEL_CHARS = 48
MAX_VALUE_CHARS = 24
MAX_CHANGE_CHARS = 40  # of the change that a resume made, such as `max_steps 5000→10000 at step 5000`
NUMBER = re.compile(r"(?<==)[-+.\de]+")  # as in `lr=0.003`


def labels_of(configs: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> list[str]:
    """Return a label such as `lr=0.003 batch_size=8` for each config.

    A label that is too long loses the settings that most configs share. Two labels are equal only if the configs have
    equal values for all keys.
    """
    settings = [tuple(hashable(config.get(key)) for key in keys) for config in configs]
    different = dict(zip(settings, configs, strict=True))
    common = [Counter(values) for values in zip(*different, strict=True)]
    kept = {setting: _fitting(config, keys, setting, common) for setting, config in different.items()}
    labels = {setting: _label(different[setting], own, keys) for setting, own in kept.items()}
    alike: dict[str, list[tuple[Any, ...]]] = {}
    for setting, label in labels.items():
        alike.setdefault(label, []).append(setting)
    for same in alike.values():
        if len(same) > 1:  # they differ in settings that were left out or cut
            differing = {key for key, *values in zip(keys, *same, strict=True) if len(set(values)) > 1}
            for setting in same:
                config = different[setting]
                labels[setting] = _label(config, {*kept[setting], *differing}, keys, whole=differing)
    return [labels[setting] for setting in settings]


def _fitting(
    config: Mapping[str, Any], keys: Sequence[str], setting: Sequence[Any], common: Sequence[Mapping[Any, int]]
) -> set[str]:
    """Return the config's keys that fit into a label."""
    words = _words(config, {key for key in keys if key in config}, keys)
    times = {key: counts[value] for key, value, counts in zip(keys, setting, common, strict=True)}
    # Among equally common keys the later one is dropped first: warmup usually follows the batch size, not vice versa.
    droppable = sorted(words, key=lambda key: times[key])[::-1]
    length = sum(len(word) + 1 for word in words.values()) - 1
    for key in droppable[:-1]:
        if length > MAX_LABEL_CHARS:
            length -= len(words.pop(key)) + 1
    return set(words)


def _label(config: Mapping[str, Any], own: Iterable[str], keys: Sequence[str], whole: Iterable[str] = ()) -> str:
    """Return the label with the keys in `own`; the values of the keys in `whole` are not cut."""
    return " ".join(_words(config, own, keys, whole).values())


def _words(
    config: Mapping[str, Any], own: Iterable[str], keys: Sequence[str], whole: Iterable[str] = ()
) -> dict[str, str]:
    """Return a word such as `lr=0.003` for each key in `own`, in the order of `keys`."""
    names, own, whole = short_names(keys), set(own), set(whole)
    texts = {key: setting_text(config.get(key), key) for key in keys if key in own}
    cut = {
        key: text if key in whole else cut_middle(text, MAX_CHANGE_CHARS if key == "resumed" else MAX_VALUE_CHARS)
        for key, text in texts.items()
    }
    return {key: f"{names[key]}={text}" for key, text in cut.items()}


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return each key's last part if it is unique, otherwise the whole key: `lr`, and `model` for `model._target_`."""
    keys = list(keys)
    names = {key: (key.removesuffix("._target_")) for key in keys}
    last = Counter(name.rpartition(".")[2] for name in names.values())
    return {key: name.rpartition(".")[2] if last[name.rpartition(".")[2]] == 1 else name for key, name in names.items()}


def setting_text(value: Any, key: str = "") -> str:
    """Return a config value as text on one line; a class or function without its module."""
    return rounded(value.rpartition(".")[2] if isinstance(value, str) and key.endswith("_target_") else value)


def cut_middle(text: str, limit: int) -> str:
    """Return a text that is too long without its middle; a setting's number is kept or left out as a whole."""
    if len(text) <= limit:
        return text
    head, tail = limit // 2 - 1, len(text) - (limit - limit // 2)
    for number in NUMBER.finditer(text):
        if number.start() < head < number.end():
            head = number.start()
        if number.start() < tail < number.end():
            tail = number.end()
    return f"{text[:head]}…{text[tail:]}"


def folder_names(paths: Sequence[Path]) -> list[str]:
    """Return the last parts of each path, as many as make the names unique."""
    parts = [Path(os.path.abspath(path)).parts for path in paths]
    depth = 1
    while len({part[-depth:] for part in parts}) < len(parts):
        depth += 1
    return ["/".join(part[-depth:]) for part in parts]


def hashable(value: Any) -> Any:
    """Return a value that can be a dictionary key; equal values stay equal."""
    return canonical_json(value) if isinstance(value, list) else value


def canonical_json(value: Any) -> str:
    """Return JSON text that is equal for equal values."""
    return json.dumps(value, sort_keys=True, default=str)


def shortened(labels: Sequence[str], width: int) -> list[str]:
    """Return labels of at most `width` characters, which are different wherever the whole ones are.

    They are cut at the end, or else at the beginning, or else they get numbers.
    """
    cuts = (
        [label[:width] for label in labels],
        [label if len(label) <= width else "…" + label[1 - width :] for label in labels],
    )
    for cut in cuts:
        if len(set(cut)) == len(set(labels)):
            return cut
    numbers = {label: number for number, label in enumerate(dict.fromkeys(labels), 1)}
    return [f"{numbers[label]}: {label}"[:width] for label in labels]
