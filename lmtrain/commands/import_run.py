"""`python -m lmtrain import PATH [overrides]`: makes a run directory from a model of another program."""

import argparse
import copy
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from lmtrain.config.build import raising_config_errors
from lmtrain.config.compose import compose
from lmtrain.config.token_files import token_folders
from lmtrain.errors import ConfigError
from lmtrain.files.durable import sha256_of
from lmtrain.run.new_run import new_run
from lmtrain.run.reading.run_data import NO_DATA
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser

if TYPE_CHECKING:  # the help needs no torch
    from lmtrain.convert.imported_model import ImportedModel, Value
    from lmtrain.convert.nanogpt.checkpoint import NanoGPTCheckpoint
    from lmtrain.data.stored_tokenizer import StoredTokenizer

EPILOG = """\
examples: python -m lmtrain import SmolLM-135M data.path=data/my_text
          python -m lmtrain import out-shakespeare-char/ckpt.pt data.path=data/shakespeare_char

A Hugging Face folder has config.json and model.safetensors. It may be a Llama, Mistral, Qwen3 or GPT-2. The run begins
at step 0 with its weights; its tokenizer comes along. Without data.path, the model can be sampled and evaluated, and a
fork trains it.

A folder of litgpt has lit_model.pth and model_config.yaml, of a Llama-like model; a .bin file of llm.c has a GPT-2.
Both work like a Hugging Face folder.

For nanoGPT's ckpt.pt, data.path is the folder with train.bin and val.bin. Model size, batch size, schedule and
optimizer come from the checkpoint. If the folder has a meta.pkl of characters, it becomes the tokenizer. A checkpoint
from a nanoGPT version that did not yet use nn.GELU needs model.gelu=tanh.

Your overrides win.
"""
MOST_DATA_BLOCK = 1024  # tokens per sequence in training, unless another data.block_size is given
PLACEHOLDER_BYTES = 1 << 22
LLM_C_STARTS = {number.to_bytes(4, "little") for number in (20240326, 20240803)}  # GPT-2 and Llama 3


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain import",
        description="Makes a run directory whose first checkpoint has the weights of a Hugging Face folder, or the "
        "state of nanoGPT's ckpt.pt:\nweights, AdamW moments and step. Continue its training with resume=RUN_DIR.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="folder of Hugging Face or litgpt, .bin of llm.c, or nanoGPT's checkpoint",
    )
    parser.add_argument("overrides", nargs="*", default=[], help="data.path=DIR, and any other config values to change")
    options = parser.read(arguments)
    read = next((read for matches, read in MODEL_FORMATS if matches(options.path)), None)
    if read is None:
        refuse_other(options.path)
        return import_nanogpt(options.path, options.overrides)
    with raising_config_errors():
        model = read(options.path)
    return import_model(options.path, model, options.overrides)


def refuse_other(path: Path) -> None:
    """Raise ConfigError for a path that can't be nanoGPT's checkpoint either, with what it may be."""
    if not path.exists():
        raise ConfigError(f"{path}: no such file or folder")
    if path.is_dir():
        if (path / "config.yaml").is_file():
            raise ConfigError(f"{path}: is a run already; continue it with resume={path}, or begin with fork={path}")
        hint = f"; did you mean {path / 'ckpt.pt'}?" if (path / "ckpt.pt").is_file() else ""
        raise ConfigError(
            f"{path}: has no model: neither config.json (Hugging Face) nor lit_model.pth (litgpt) is in it{hint}"
        )
    if path.suffix == ".gguf":
        raise ConfigError(f"{path}: GGUF files can't be imported; give the Hugging Face folder of the model")
    if path.suffix == ".safetensors":
        raise ConfigError(f"{path}: give the folder, {path.parent}, whose config.json says what the weights mean")


def read_hugging_face(path: Path) -> "ImportedModel":
    from lmtrain.convert.hugging_face.read_folder import read_hugging_face_folder  # loads torch

    return read_hugging_face_folder(path)


def read_litgpt(path: Path) -> "ImportedModel":
    from lmtrain.convert.litgpt import read_litgpt_folder  # loads torch

    return read_litgpt_folder(path)


def read_llm_c(path: Path) -> "ImportedModel":
    from lmtrain.convert import llm_c  # loads torch

    return llm_c.read_llm_c(path)


def begins_as_llm_c(path: Path) -> bool:
    """Return whether a file begins with the first number of llm.c's checkpoints."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) in LLM_C_STARTS


# How each format of models is recognised and read; what is none of them may be nanoGPT's checkpoint.
MODEL_FORMATS: "Sequence[tuple[Callable[[Path], bool], Callable[[Path], ImportedModel]]]" = [
    (lambda path: (path / "lit_model.pth").is_file(), read_litgpt),  # it may also have a config.json
    (begins_as_llm_c, read_llm_c),
    (lambda path: (path / "config.json").is_file(), read_hugging_face),
]


def import_model(path: Path, model: "ImportedModel", overrides: Sequence[str]) -> int:
    """Write a run that begins with the weights of a model."""
    from lmtrain.convert.imported_run import WeightsOnly, write_run
    from lmtrain.convert.tokenizer_check import refuse_other_tokenizer

    block_size = model.settings["model.block_size"]
    assert isinstance(block_size, int)
    data_settings: dict[str, Value] = {"data": "tokens", "data.block_size": min(block_size, MOST_DATA_BLOCK)}
    given = with_defaults({**model.settings, **data_settings}, overrides)
    has_data = not lacks_data(given)
    with placeholder_data() as placeholder:
        run = new_run(given if has_data else [*given, f"data.path={placeholder}"], needs_empty_directory=True)
        written, hydra_files = copy.deepcopy(run.cfg), run.hydra_files
        if not has_data:
            OmegaConf.update(written, "data.path", NO_DATA)
            hydra_files = {name: text.replace(str(placeholder), NO_DATA) for name, text in hydra_files.items()}
        with raising_config_errors():
            refuse_other_tokenizer(model.tokenizer, token_folders(run.cfg.data), str(path))
            write_run(
                run.cfg,
                WeightsOnly(model),
                run.directory,
                hydra_files=hydra_files,
                origin=model.record,
                tokenizer=model.tokenizer,
                written_cfg=written,
            )
    print_model_summary(path, model, run.directory, has_data)
    return 0


def lacks_data(overrides: Sequence[str]) -> bool:
    """Return whether neither the overrides nor the experiments that they choose say where the token files are."""
    data = compose(overrides).get("data")
    return isinstance(data, DictConfig) and OmegaConf.is_missing(data, "path")


@contextmanager
def placeholder_data() -> Iterator[Path]:
    """Give a folder of token files with the id 0 only, from which the parts of a run without data can be built."""
    with tempfile.TemporaryDirectory(prefix="lmtrain-no-data-") as name:
        for split in ("train", "val"):
            with (Path(name) / f"{split}.bin").open("wb") as file:
                file.truncate(PLACEHOLDER_BYTES)
        yield Path(name)


def print_model_summary(path: Path, model: "ImportedModel", run_dir: Path, has_data: bool) -> None:
    """Print what was imported, and the commands that use it."""
    from lmtrain.run.report import resume_command, sample_command
    from lmtrain.terminal.paths import short_path

    params = sum(value.numel() for value in model.weights.values())
    console.print(f"imported {path}: {params:,} parameters to {run_dir}")
    if model.tokenizer is None:
        console.print("it has no tokenizer.json, so give one to sample with --tokenizer PATH")
    folder = run_dir.resolve()
    if has_data:
        console.print(f"next: {resume_command(folder)}")
    else:
        console.print(f"next: python -m lmtrain fork={short_path(folder)} data.path=DIR")
    if sample := sample_command(folder):
        console.print(f"      {sample}")


def import_nanogpt(path: Path, overrides: Sequence[str]) -> int:
    """Write a run that continues the training of nanoGPT."""
    # Imported only after the arguments are checked: these load torch.
    from lmtrain.convert.imported_run import write_run
    from lmtrain.convert.nanogpt.checkpoint import read_nanogpt_checkpoint

    with raising_config_errors():
        source = read_nanogpt_checkpoint(path)
        defaults = source.overrides()
    run = new_run(with_defaults(defaults, overrides), needs_empty_directory=True)
    characters, about_characters = find_characters(run.cfg, path)
    with raising_config_errors():
        origin = {
            "checkpoint": str(path.resolve()),
            "sha256": sha256_of(path),
            "iter_num": source.iter_num,
            "model_args": source.model_args,
            "config": source.config,
        }
        write_run(run.cfg, source, run.directory, hydra_files=run.hydra_files, origin=origin, tokenizer=characters)
    print_summary(path, source, run.cfg, run.directory, about_characters)
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
