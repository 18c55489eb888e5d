"""`python -m lmtrain sample RUN_DIR --prompt …`: generates text from a checkpoint."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.commands.evaluate import TRUST_HELP
from lmtrain.config.build import raising_config_errors
from lmtrain.config.recorded.run_names import find_run
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE
from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.options import Number, OptionParser, WholeNumber

if TYPE_CHECKING:
    from lmtrain.data.stored_tokenizer import StoredTokenizer
    from lmtrain.run.reading.loaded import LoadedModel


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(prog="python -m lmtrain sample", description="Generates text with a trained model.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory of the model")
    parser.add_argument("--prompt", default="", help="text to continue (default: begin a new document)")
    parser.add_argument(
        "--tokens", type=WholeNumber(1), default=200, help="number of tokens to generate (default: 200)"
    )
    parser.add_argument("--count", type=WholeNumber(1), default=1, help="number of texts to generate (default: 1)")
    parser.add_argument(
        "--temperature",
        type=Number(at_least=0, at_most=1000),
        default=0.8,
        help="randomness of the choice; 0 = always the likeliest token (default: 0.8)",
    )
    parser.add_argument(
        "--top-k",
        type=WholeNumber(),
        default=50,
        help="choose each token among the K likeliest; 0 = among all (default: 50)",
    )
    parser.add_argument(
        "--seed", type=WholeNumber(), default=0, help="random seed; the same seed gives the same text (default: 0)"
    )
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step number (default: best)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="tokenizer for a run that has none: a tokenizer.json, nanoGPT's meta.pkl, or a folder with either file",
    )
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)
    options.run = find_run(named := options.run)
    if not (options.run / "config.yaml").is_file():
        raise ConfigError(f"{options.run}: not a run directory (no config.yaml)")
    if options.run != named:
        print(visible(f"run {options.run}"), file=sys.stderr)

    # Imported only after the arguments are checked: these load torch.
    import torch

    from lmtrain.run.reading.loaded import load_model

    loaded = load_model(options.run, options.checkpoint, options.device, options.trust)
    loaded = replace(loaded, tokenizer=_choose_tokenizer(loaded, options.run, options.tokenizer))
    generator = torch.Generator().manual_seed(options.seed)
    for _ in range(options.count):
        text = loaded.sample(
            options.prompt,
            tokens=options.tokens,
            temperature=options.temperature,
            top_k=options.top_k,
            seed=generator,
        )
        print(visible(text))
        if options.count > 1:
            print("-" * 60)
    return 0


def _choose_tokenizer(loaded: "LoadedModel", run: Path, given: Path | None) -> "StoredTokenizer":
    """Return the run's own tokenizer, or the given one if the run has none.

    Raises:
        ConfigError: There is no tokenizer, there are two, or the given one has more ids than the model.
    """
    if loaded.tokenizer is not None:
        if given is not None:
            raise ConfigError(f"--tokenizer {given}: {run} has its own ({TOKENIZER_FILE}); leave the option out")
        return loaded.tokenizer
    if given is None:
        raise ConfigError(f"{run}: has no {TOKENIZER_FILE}, because its data had none; give one with --tokenizer PATH")
    with raising_config_errors():
        tokenizer = _read_tokenizer(given)
    known = loaded.config.model.get("vocab_size")
    if known is not None and tokenizer.vocab_size > known:
        raise ConfigError(
            f"--tokenizer {given}: has {tokenizer.vocab_size:,} ids, but the model of {run} has only {known:,}; give "
            "the tokenizer that the run's data was made with"
        )
    return tokenizer


def _read_tokenizer(path: Path) -> "StoredTokenizer":
    """Return the tokenizer in a file or folder; raise ValueError if it is missing or damaged."""
    from lmtrain.convert.nanogpt.characters import CHARACTERS_FILE, read_characters
    from lmtrain.data.stored_tokenizer import load_tokenizer

    inside = next((path / name for name in (TOKENIZER_FILE, CHARACTERS_FILE) if (path / name).is_file()), None)
    if (file := inside or path).is_dir():
        raise ValueError(f"--tokenizer {path}: the folder has no {TOKENIZER_FILE} and no {CHARACTERS_FILE}")
    if not file.is_file():
        raise ValueError(f"--tokenizer {path}: no such file or folder")
    return read_characters(file) if file.suffix == ".pkl" else load_tokenizer(file.parent, file.name)
