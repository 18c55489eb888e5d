"""Lets Hydra read the config group `experiments` from a folder of that name, but no folders beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult, ConfigSource
from omegaconf import DictConfig, OmegaConf

from lmtrain.config.conf_source import check_encoding, yaml_file
from lmtrain.config.hydra_internals import folder_source
from lmtrain.config.written_for.mismatches import ExperimentFile, note_and_leave_out

GROUP = "experiments"


class ExperimentsSource(ConfigSource):
    """The config source `experiments://DIR`, in which DIR itself is the group `experiments`.

    An entry for the parent folder in the search path would also make `outputs`, `tests` and every other folder beside
    it a config group.
    """

    def __init__(self, provider: str, path: str) -> None:
        super().__init__(provider, path)
        self.folder = folder_source(provider, Path(self.path))

    @staticmethod
    def scheme() -> str:
        return "experiments"

    def _inside(self, path: str) -> str | None:
        """Return the path below DIR, or None for a path outside the group."""
        if path == GROUP:
            return ""
        return path.removeprefix(f"{GROUP}/") if path.startswith(f"{GROUP}/") else None

    def load_config(self, config_path: str) -> ConfigResult:
        inside = self._inside(config_path)
        if inside is None:
            raise ConfigLoadError(f"{config_path} is not in the group {GROUP}")
        path = yaml_file(self.path, inside)
        check_encoding(path)
        loaded = replace(self.folder.load_config(inside), path=self.full_path())
        if isinstance(loaded.config, DictConfig):
            content: Any = OmegaConf.to_container(loaded.config)
            file = ExperimentFile(config_path, content, path, loaded.header["package"])
            loaded.config = OmegaConf.create(dict(note_and_leave_out(file)))
        return loaded

    def available(self) -> bool:
        return self.folder.available()

    def is_group(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return config_path == "" or (inside is not None and self.folder.is_group(inside))

    def is_config(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return bool(inside) and self.folder.is_config(str(inside))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        inside = self._inside(config_path)
        if inside is None:
            return [GROUP] if config_path == "" and results_filter in (None, ObjectType.GROUP) else []
        return self.folder.list(inside, results_filter)
