"""Writes the `.hydra/` folder of a run, from which a fork or a rerun composes its config, without training."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from lmtrain.config.compose import compose


def write_saved_run(run_dir: Path, *overrides: str) -> Path:
    """Write a run with the config that these overrides compose."""
    (run_dir / ".hydra").mkdir(parents=True)
    (run_dir / ".hydra" / "config.yaml").write_text(composed_text(overrides), encoding="utf-8")
    record(run_dir, overrides)
    return run_dir


@cache  # composing takes longer than the rest of a test
def composed_text(overrides: tuple[str, ...]) -> str:
    return OmegaConf.to_yaml(compose(overrides))


def record(run_dir: Path, overrides: Sequence[str]) -> None:
    """Record these overrides as those of the run."""
    (run_dir / ".hydra" / "overrides.yaml").write_text(OmegaConf.to_yaml(list(overrides)), encoding="utf-8")


def change_saved(run_dir: Path, key: str, value: Any) -> None:
    """Set a top-level key of the saved config; the key may have any characters."""
    path = run_dir / ".hydra" / "config.yaml"
    saved: Any = OmegaConf.to_container(OmegaConf.create(path.read_text(encoding="utf-8")))
    path.write_text(OmegaConf.to_yaml({**saved, key: value}), encoding="utf-8")
