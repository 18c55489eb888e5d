"""Finds the token files that a run was trained on, or others in their place."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from lmtrain.data.stored_tokenizer import TOKENIZER_FILE
from lmtrain.errors import ConfigError
from lmtrain.run.directory import starting_folder

NO_TOKENIZER = f"has no {TOKENIZER_FILE}, because its data had none; give one with --tokenizer PATH"
NO_DATA = "none"  # data.path of a run that was imported without data


def data_node(data: DictConfig, folder: Path | None, run: Path) -> dict[str, Any]:
    """Return the config node of the run's own loader, changed to read `folder` if that is given.

    Relative paths that do not exist here are taken from the folder that the run was started in.
    """
    node: dict[str, Any] = {str(key): value for key, value in data.items()}
    if folder is None:
        if node.get("path") == NO_DATA:
            raise ConfigError(f"{run}: was imported without data; give a folder of token files or, to evaluate, --text")
        base = starting_folder(run) if (run / ".hydra" / "hydra.yaml").is_file() else None
        if base and node.get("path") is not None and not Path(node["path"]).is_dir():
            node["path"] = str(base / node["path"])
        if base and node.get("paths"):
            node["paths"] = {
                name: path if Path(path).is_dir() else str(base / path) for name, path in node["paths"].items()
            }
        return node
    if "path" not in node and "paths" not in node:
        raise ConfigError(
            f"{folder}: can't replace the run's data, because its loader ({node['_target_']}) has no path to change"
        )
    if "paths" in node:  # a mixture
        kept: dict[str, Any] = {
            key: node[key] for key in ("batch_size", "block_size", "vocab_size", "dtype") if key in node
        }
        return {"_target_": "lmtrain.data.loader.TokenLoader", "path": str(folder), **kept}
    return {**node, "path": str(folder)}
