"""Lets Hydra read the user's own `conf`, and names a file of another program that is in the way."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource

from lmtrain.config.check import GROUPS
from lmtrain.config.hydra_internals import folder_source
from lmtrain.config.shipped import shipped
from lmtrain.errors import ConfigError
from lmtrain.terminal.paths import short_path

MENU = "config"  # conf/config.yaml
IN_EVERY_MENU = ("data", "model", "optimizer", "scheduler", "system", "trainer")
BYTE_ORDER_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")


class ConfSource(ConfigSource):
    """The config source `conf://DIR`: the choices in DIR, and its `config.yaml` if it is a main config for lmtrain.

    Many projects have a `conf/config.yaml`. If lmtrain used it as main config, all of its own keys would be unknown.
    """

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.folder = folder_source(provider, Path(self.path))

    @staticmethod
    def scheme() -> str:
        return "conf"

    def load_config(self, config_path: str) -> ConfigResult:
        path = yaml_file(self.path, config_path)
        check_encoding(path)
        loaded = replace(self.folder.load_config(config_path), path=self.full_path())
        _refuse_without_target(path, config_path.removesuffix(".yaml"), loaded.config)
        return loaded

    def available(self) -> bool:
        return self.folder.available()

    def is_group(self, config_path: str) -> bool:
        return self.folder.is_group(config_path)

    def is_config(self, config_path: str) -> bool:
        if config_path == MENU and not is_menu(Path(self.path, f"{MENU}.yaml")):
            return False
        return self.folder.is_config(config_path)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        return self.folder.list(config_path, results_filter)


def yaml_file(folder: str, config_path: str) -> Path:
    """Return the file of a config; as in Hydra, the name may include the suffix."""
    return Path(folder, f"{config_path.removesuffix('.yaml')}.yaml")


def check_encoding(path: Path) -> None:
    """Raise ConfigError for a YAML file that is not plain UTF-8."""
    try:
        content = path.read_bytes()
        if content.startswith(BYTE_ORDER_MARKS):
            raise ConfigError(
                f"{short_path(path)}: begins with a byte order mark, which hides its first line; save it as UTF-8 "
                "without byte order mark"
            )
        content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            f"{short_path(path)}, line {line}: not UTF-8 (byte 0x{content[error.start]:02x}); save it as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{short_path(path)}: can't be read: {error.strerror}") from error


def is_menu(path: Path) -> bool:
    """Return whether a file is a main config for lmtrain: it chooses or contains every group that a run needs."""
    return {*IN_EVERY_MENU} <= {*_menu(path)}


def menu_choices() -> Mapping[str, Any]:
    """Return the choices of the main config, by config group."""
    own = Path.cwd() / "conf" / f"{MENU}.yaml"
    return _menu(own if is_menu(own) else shipped("conf") / f"{MENU}.yaml")


def foreign_menu() -> Path | None:
    """Return the `conf/config.yaml` in the current folder if it is not a main config for lmtrain, else None."""
    own = Path.cwd() / "conf" / f"{MENU}.yaml"
    return own if own.is_file() and not is_menu(own) else None


def _menu(path: Path) -> dict[str, Any]:
    """Return the choices in the defaults list of a main config, and its other keys; empty for an unreadable file."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}
    if not isinstance(content, dict):
        return {}
    defaults = content.get("defaults")
    entries = [entry for entry in defaults if isinstance(entry, dict)] if isinstance(defaults, list) else []
    return content | {str(key).lstrip("/"): choice for entry in entries for key, choice in entry.items()}


def _refuse_without_target(path: Path, config_path: str, content: Any) -> None:
    """Raise ConfigError for a file that shadows a shipped choice but can't be a choice itself."""
    group, _, choice = config_path.rpartition("/")
    if group not in GROUPS or not Path(shipped("conf"), f"{config_path}.yaml").is_file():
        return
    if "_target_" not in content and "defaults" not in content:
        raise ConfigError(
            f"{short_path(path)}: replaces the shipped {group}={choice} but has no _target_; if it belongs to another "
            "program, rename it or start lmtrain in another folder"
        )


@contextmanager
def naming_origins(overrides: Sequence[str], choices: Mapping[str, Any]) -> Iterator[None]:
    """Name the file that caused a mistake in a config, if it is not obvious, in errors raised in the `with` block.

    Raises:
        ConfigError: The error from the block, with the files added to its lines.
    """
    try:
        yield
    except ConfigError as error:
        lines = (_with_origin(line, overrides, choices) for line in str(error).splitlines())
        raise ConfigError("\n".join(lines)) from error


def _with_origin(problem: str, overrides: Sequence[str], choices: Mapping[str, Any]) -> str:
    key = re.split("[=:]", problem)[0]
    if any(text.lstrip("+").partition("=")[0] == key for text in overrides):
        return problem
    for name in (key, *re.findall(r"Interpolation key '([^']+)' not found", problem)):
        group, _, rest = name.partition(".")
        choice = rest.partition(".")[0] if group == "logger" else choices.get(group)
        own, lmtrains = (folder / group / f"{choice}.yaml" for folder in (Path.cwd() / "conf", shipped("conf")))
        if own.is_file() and lmtrains.is_file() and own != lmtrains:
            return f"{problem}; {group}={choice} comes from {short_path(own)} here, not from lmtrain"
    experiment = next((text for text in overrides if text.startswith("experiments=")), None)
    if experiment and ": unknown key" in problem:
        return f"{problem}; it is set by {experiment}; leave it out with '~{key}'"
    return problem
