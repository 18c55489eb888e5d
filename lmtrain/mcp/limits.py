"""Checks the arguments of a tool: an agent stays inside one folder, and chooses no code that is not in `conf/`."""

import re
from collections.abc import Sequence
from pathlib import Path

from lmtrain.errors import ConfigError

# The settings of Hydra that say where a run or a sweep is written and how it is divided; the others start programs
# elsewhere, or change where configs come from.
ALLOWED_HYDRA_KEYS = frozenset(
    {
        "hydra.run.dir",
        "hydra.sweep.dir",
        "hydra.launcher.n_jobs",
        "hydra.launcher.gpus_per_job",
        "hydra/sweeper",
        "hydra.sweeper.n_trials",
    }
)
# One with a resolver, such as `${oc.env:HOME}`, reads the environment; one beside other text can become another path.
INTERPOLATION = re.compile(r"\$\{[\w.]+\}")
SEPARATORS = re.compile(r"[\s=,\[\](){}'\":]+")


def check_overrides(overrides: Sequence[str], folder: Path) -> list[str]:
    """Return the overrides; each must be `key=value` without flags, foreign code and paths outside the folder.

    Raises:
        ConfigError: an override is not allowed; the message names it and the reason.
    """
    for override in overrides:
        key, equals, value = override.partition("=")
        names = key.lstrip("+~").split("@")  # a config group may name the package in which it is put
        if override.startswith("-") or not (equals or override.startswith("~")):
            raise ConfigError(f"{override}: is not an override; write key=value")
        if "_target_" in override:
            raise ConfigError(f"{override}: code is chosen by the YAML files in conf/, not by an override")
        if "trust" in names:
            raise ConfigError(f"{override}: a person decides which code is trusted, outside of this server")
        if any(name.startswith("hydra") for name in names) and "@".join(names) not in ALLOWED_HYDRA_KEYS:
            raise ConfigError(
                f"{override}: of Hydra's settings, only {', '.join(sorted(ALLOWED_HYDRA_KEYS))} are allowed"
            )
        if "${" in override and not INTERPOLATION.fullmatch(value):
            raise ConfigError(
                f"{override}: an interpolation is allowed only alone and without a resolver; write the value itself"
            )
        check_paths(value, folder, override)
    return list(overrides)


def check_paths(text: str, folder: Path, shown: str) -> None:
    """Raise ConfigError if a word of the text is a path outside the folder; `shown` is named in the message."""
    for word in filter(None, SEPARATORS.split(text)):
        if word.startswith("~"):
            raise ConfigError(f"{shown}: {word} is outside the folder of this server")
        if "/" in word or word == ".." or (folder / word).is_symlink():
            path = (folder / word).resolve()
            if path != folder and folder not in path.parents:
                raise ConfigError(f"{shown}: {word} is outside the folder of this server")


def check_runs(paths: Sequence[str], folder: Path) -> list[str]:
    """Return the paths of runs relative to the folder.

    Raises:
        ConfigError: a path is missing, or outside the folder.
    """
    found = []
    for path in paths:
        if path.startswith("-"):
            raise ConfigError(f"{path}: is not a path")
        resolved = (folder / path).resolve()
        if resolved != folder and folder not in resolved.parents:
            raise ConfigError(f"{path}: is outside the folder of this server")
        if not resolved.exists():
            raise ConfigError(f"{path}: no such run or folder")
        relative = str(resolved.relative_to(folder))
        found.append(f"./{relative}" if relative.startswith("-") else relative)  # it is no option
    return found
