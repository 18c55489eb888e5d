"""`python -m lmtrain evaluate RUN_DIR…`: measures loss, perplexity and bits per byte of checkpoints on a split."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.table import Table

from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.errors import ConfigError
from lmtrain.run.directory import is_sweep, starting_folder
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser
from lmtrain.terminal.units import significant

TRUST_HELP = "allow a class or function named in the run's config to be imported, e.g. mymodels.Bigram; repeatable"


def finished_runs(path: Path) -> list[Path]:
    """Return the run itself or the runs of a sweep; print the folders that are left out for lack of a checkpoint."""
    if (path / "config.yaml").is_file() and checkpoint_steps(path):
        return [path]
    if is_sweep(path):
        jobs = [job for job in sorted(path.iterdir()) if job.is_dir() and not job.is_symlink()]  # a link may lead back
        return [run for job in jobs for run in finished_runs(job)]
    console.print(f"{path}: left out because it is not a run with a checkpoint")
    return []


def data_node(data: DictConfig, folder: Path | None, run: Path) -> dict[str, Any]:
    """Return the config node of the run's own loader, changed to read `folder` if that is given.

    Relative paths that do not exist here are taken from the folder that the run was started in.
    """
    node: dict[str, Any] = {str(key): value for key, value in data.items()}
    if folder is None:
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
            f"--data {folder}: the run's loader ({node['_target_']}) has no path to change; leave the option out"
        )
    if "paths" in node:  # a mixture
        kept = {key: node[key] for key in ("batch_size", "block_size", "vocab_size")}
        return {"_target_": "lmtrain.data.loader.TokenLoader", "path": str(folder), **kept}
    return {**node, "path": str(folder)}


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain evaluate",
        description="Measures loss, perplexity and bits per byte of trained models over every token of a split.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN_DIR", help="run or sweep directories")
    parser.add_argument(
        "--split", default="val", help="train, val or the name of any other .bin file of the data (default: val)"
    )
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder of token files (default: the run's own)")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step number (default: best)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)

    runs = [run for path in options.runs for run in finished_runs(path)]
    if not runs:
        raise ConfigError(f"{', '.join(map(str, options.runs))}: found no run with a checkpoint")

    # Imported only after the arguments are checked: these load torch.
    from lmtrain.config.build import build, raising_config_errors
    from lmtrain.config.token_files import token_folders
    from lmtrain.data.meta import check_tokenizer
    from lmtrain.loop.evaluation import evaluate, perplexity
    from lmtrain.run.loaded import load_run

    table = Table("run", "step", "split", "tokens", "loss", "perplexity", "bits/byte")
    for run in runs:
        loaded = load_run(run, options.checkpoint, options.device, options.trust)
        node = OmegaConf.create(data_node(loaded.cfg.data, options.data, run))
        with raising_config_errors():
            for folder in token_folders(node).values():
                check_tokenizer(folder, beside=run)
            loader = build(node, split=options.split, seed=loaded.cfg.seed)
            loss = evaluate(loaded.model, loaded.model, loader.whole_split(), loaded.system)
        per_byte = f"{loss / math.log(2) / loader.bytes_per_token:.4f}" if loader.bytes_per_token else "–"
        tokens = f"{loader.total_tokens:,}"
        table.add_row(
            str(run), str(loaded.step), options.split, tokens, f"{loss:.4f}", significant(perplexity(loss)), per_byte
        )
    console.print(table)
    return 0
