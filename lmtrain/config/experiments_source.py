"""Lets Hydra read the config group `experiments` from a folder of that name, without its siblings."""

from pathlib import Path

from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigLoadError, ConfigResult

GROUP = "experiments"


class ExperimentsSource(FileConfigSource):
    """`experiments://DIR`: the group `experiments` is DIR itself.

    A search path entry for the parent folder would do, but would make `outputs`, `tests` and whatever else
    lies beside it config groups as well.
    """

    @staticmethod
    def scheme() -> str:
        return "experiments"

    def _inside(self, path: str) -> str | None:
        """The path below DIR, or None outside the group."""
        if path == GROUP:
            return ""
        return path.removeprefix(f"{GROUP}/") if path.startswith(f"{GROUP}/") else None

    def load_config(self, config_path: str) -> ConfigResult:
        inside = self._inside(config_path)
        if inside is None:
            raise ConfigLoadError(f"{config_path} is not in the group {GROUP}")
        return super().load_config(inside)

    def available(self) -> bool:
        return super().is_group("")

    def is_group(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return config_path == "" or (inside is not None and super().is_group(inside))

    def is_config(self, config_path: str) -> bool:
        inside = self._inside(config_path)
        return bool(inside) and super().is_config(str(inside))

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        inside = self._inside(config_path)
        if inside is None:
            return [GROUP] if config_path == "" and results_filter in (None, ObjectType.GROUP) else []
        found: list[str] = []
        for entry in Path(self.path, inside).iterdir():
            self._list_add_result(found, f"{config_path}/{entry.name}", entry.name, results_filter)
        return sorted(set(found))
