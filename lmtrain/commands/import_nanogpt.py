"""`python -m lmtrain import CKPT.pt [overrides]`: makes a run directory that continues a nanoGPT checkpoint."""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from lmtrain.config.build import raising_config_errors
from lmtrain.config.compose import compose
from lmtrain.config.token_files import token_folders
from lmtrain.files.durable import sha256_of
from lmtrain.run.new_run import new_run
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser

if TYPE_CHECKING:  # the help needs no torch
    from lmtrain.convert.nanogpt.checkpoint import NanoGPTCheckpoint
    from lmtrain.convert.nanogpt.settings import Value
    from lmtrain.data.stored_tokenizer import StoredTokenizer

EPILOG = """\
example:  python -m lmtrain import out-shakespeare-char/ckpt.pt data.path=data/shakespeare_char

data.path is the folder with nanoGPT's train.bin and val.bin. Model size, batch size, schedule and optimizer come from
the checkpoint; your overrides win. If the folder has a meta.pkl of characters, it becomes the tokenizer. A checkpoint
from a nanoGPT version that did not yet use nn.GELU needs model.gelu=tanh.
"""


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain import",
        description="Makes a run directory whose first checkpoint has the state of nanoGPT's ckpt.pt: weights, AdamW "
        "moments and step.\nContinue its training with resume=RUN_DIR.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CKPT.pt", help="nanoGPT's checkpoint")
    parser.add_argument("overrides", nargs="*", default=[], help="data.path=DIR, and any other config values to change")
    options = parser.read(arguments)

    # Imported only after the arguments are checked: these load torch.
    from lmtrain.convert.nanogpt.checkpoint import read_nanogpt_checkpoint
    from lmtrain.convert.nanogpt.run import write_run

    with raising_config_errors():
        source = read_nanogpt_checkpoint(options.checkpoint)
        defaults = source.overrides()
    run = new_run(with_defaults(defaults, options.overrides), needs_empty_directory=True)
    characters, about_characters = find_characters(run.cfg, options.checkpoint)
    with raising_config_errors():
        origin = {
            "checkpoint": str(options.checkpoint.resolve()),
            "sha256": sha256_of(options.checkpoint),
            "iter_num": source.iter_num,
            "model_args": source.model_args,
            "config": source.config,
        }
        write_run(run.cfg, source, run.directory, hydra_files=run.hydra_files, origin=origin, characters=characters)
    print_summary(options.checkpoint, source, run.cfg, run.directory, about_characters)
    return 0


def find_characters(cfg: DictConfig, checkpoint: Path) -> "tuple[StoredTokenizer | None, str]":
    """Return the tokenizer from nanoGPT's `meta.pkl` beside the data or the checkpoint, and a message about the file.

    A run can continue without a tokenizer, so a file that can't be used is not an error.
    """
    from lmtrain.convert.nanogpt.characters import CHARACTERS_FILE, read_characters
    from lmtrain.data.stored_tokenizer import TOKENIZER_FILE

    data = list(token_folders(cfg.data).values())
    if any((folder / TOKENIZER_FILE).is_file() for folder in data):
        return None, ""  # the data has its own tokenizer
    folders = [*data, checkpoint.parent]
    path = next((folder / CHARACTERS_FILE for folder in folders if (folder / CHARACTERS_FILE).is_file()), None)
    if path is None:
        return None, ""
    try:
        found = read_characters(path)
    except (OSError, ValueError) as error:
        return None, f"left out {error}"
    if found.vocab_size > (known := cfg.model.get("vocab_size", found.vocab_size)):
        return None, f"left out {path}: its ids go up to {found.vocab_size - 1}, but the model's only to {known - 1}"
    return found, f"the tokenizer has the {len(found.tokenizer.get_vocab()):,} characters of {path}"


def with_defaults(defaults: "Mapping[str, Value]", overrides: Sequence[str]) -> list[str]:
    """Return the checkpoint's values as overrides, followed by the user's.

    If the user selects another choice of a group, the checkpoint's values that this choice does not have are left out.
    """
    groups = [f"{key}={value}" for key, value in defaults.items() if "." not in key]
    chosen = compose([*groups, *overrides])
    values = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in defaults.items()
        if "." in key and OmegaConf.select(chosen, key, default=_MISSING) is not _MISSING
    ]
    return [*groups, *values, *overrides]


_MISSING = object()


def print_summary(
    path: Path, source: "NanoGPTCheckpoint", cfg: DictConfig, run_dir: Path, about_characters: str
) -> None:
    """Print what was imported, what differs from nanoGPT from now on, and the command that continues the run."""
    from lmtrain.run.report import resume_command, sample_command

    loss = "" if source.best_val_loss is None else f", val loss {source.best_val_loss:.4f}"
    params = sum(value.numel() for value in source.weights.values())
    console.print(f"imported {path}: {params:,} parameters and their AdamW state at step {source.iter_num:,}{loss}")
    if not source.config:
        console.print(
            "the checkpoint has no training settings, so batch size, learning rate and schedule are lmtrain's defaults"
        )
    console.print(f"from now on, batches come in lmtrain's own order (data.order={cfg.data.get('order')})")
    if about_characters:
        console.print(about_characters)
    steps = cfg.trainer.max_steps
    if steps <= source.iter_num:
        steps = max(2 * source.iter_num, 1)
        decay = cfg.scheduler.get("max_steps")
        if decay is not None and decay < steps:
            console.print(f"the schedule ends at step {decay:,}; set scheduler.max_steps to change that")
    console.print(f"next: {resume_command(run_dir.resolve())} trainer.max_steps={steps}")
    if sample := sample_command(run_dir.resolve()):
        console.print(f"      {sample}")
