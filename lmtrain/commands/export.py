"""`python -m lmtrain export RUN_DIR --to hf DIR`: writes a run's model in a format of other programs."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.commands.evaluate import TRUST_HELP
from lmtrain.config.build import raising_config_errors
from lmtrain.config.recorded.run_names import find_run, why_no_run
from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser, run_name

if TYPE_CHECKING:  # the help needs no torch
    from lmtrain.run.reading.loaded import LoadedModel

EPILOG = """\
examples: python -m lmtrain export outputs/bard --to hf bard
          python -m lmtrain export outputs/bard --to gguf bard.gguf --dtype bfloat16

A folder for Hugging Face is what transformers' AutoModelForCausalLM.from_pretrained and
AutoTokenizer.from_pretrained load, without code from elsewhere. It has a model card with the facts of the run. A GGUF
file is what llama.cpp loads, with the tokenizer in it.
Options of a model that the target has no place for are refused by name.
"""

Export = Callable[["LoadedModel", Path, str], Sequence[str]]


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain export",
        description="Writes the model of a run with its tokenizer for other programs.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run", type=run_name, metavar="RUN_DIR", help="run directory of the model")
    parser.add_argument(
        "--to",
        nargs=2,
        required=True,
        metavar=("FORMAT", "PATH"),
        help="hf DIR = a new folder for transformers and vLLM; gguf FILE = a new file for llama.cpp",
    )
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step number (default: best)")
    parser.add_argument(
        "--dtype",
        default="float32",
        metavar="DTYPE",
        help="number format of the weights: float32, bfloat16 or float16; for gguf also q8_0 (default: float32)",
    )
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)
    target, path = options.to[0], Path(options.to[1])
    if target not in FORMATS:
        raise ConfigError(f"--to {target}: no such format; choose from {', '.join(FORMATS)}")
    export = FORMATS[target]
    options.run = find_run(named := options.run)
    if not (options.run / "config.yaml").is_file():
        raise ConfigError(why_no_run(options.run))
    if options.run != named:
        print(visible(f"run {options.run}"), file=sys.stderr)

    # Imported only after the arguments are checked: this loads torch.
    from lmtrain.run.reading.loaded import load_model

    loaded = load_model(options.run, options.checkpoint, "cpu", options.trust)
    with raising_config_errors():
        remarks = export(loaded, path, options.dtype)
    params = sum(param.numel() for param in loaded.model.parameters())
    console.print(f"exported step {loaded.step:,} of {options.run}: {params:,} parameters in {options.dtype} to {path}")
    for remark in remarks:
        console.print(remark)
    return 0


def to_hugging_face(loaded: "LoadedModel", path: Path, dtype: str) -> Sequence[str]:
    """Write a folder for transformers; return remarks about it."""
    from lmtrain.convert.hugging_face.export import export_folder

    return export_folder(loaded, path, dtype)


def to_gguf(loaded: "LoadedModel", path: Path, dtype: str) -> Sequence[str]:
    """Write a file for llama.cpp; return remarks about it."""
    from lmtrain.convert.gguf.export import export_gguf

    return export_gguf(loaded, path, dtype)


FORMATS: dict[str, Export] = {"hf": to_hugging_face, "gguf": to_gguf}
