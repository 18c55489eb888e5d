"""`python -m lmtrain sample RUN_DIR --prompt …`: text from a checkpoint."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.commands.evaluate import TRUST_HELP
from lmtrain.config.build import raising_config_errors
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE
from lmtrain.errors import ConfigError
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.options import Number, OptionParser, WholeNumber

if TYPE_CHECKING:
    from lmtrain.data.stored_tokenizer import StoredTokenizer
    from lmtrain.run.loaded import LoadedModel


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(prog="python -m lmtrain sample", description="Writes text with a trained model.")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="run directory")
    parser.add_argument("--prompt", default="", help="the text to continue (default: the start of a document)")
    parser.add_argument("--tokens", type=WholeNumber(1), default=200, help="how many to add (default: 200)")
    parser.add_argument("--count", type=WholeNumber(1), default=1, help="how many texts (default: 1)")
    parser.add_argument(
        "--temperature",
        type=Number(at_least=0, at_most=1000),
        default=0.8,
        help="0 = always the likeliest (default: 0.8)",
    )
    parser.add_argument("--top-k", type=WholeNumber(), default=50, help="choose among so many; 0 = all (default: 50)")
    parser.add_argument("--seed", type=WholeNumber(), default=0, help="the same seed gives the same text (default: 0)")
    parser.add_argument("--checkpoint", default="best", help="best, latest or a step (default: best)")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda (default: auto)")
    parser.add_argument(
        "--tokenizer",
        type=Path,
        metavar="PATH",
        help="for a run without one: a tokenizer.json, a meta.pkl of characters, or a folder that has one",
    )
    parser.add_argument("--trust", action="append", default=[], metavar="TARGET", help=TRUST_HELP)
    options = parser.read(arguments)
    if not (options.run / "config.yaml").is_file():
        raise ConfigError(f"{options.run}: not a run directory (no config.yaml)")

    # After the arguments are understood: these import torch.
    import torch

    from lmtrain.run.loaded import load_model

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
    """Return the run's own tokenizer or, of a run that has none, the one that is given.

    Raises:
        ConfigError: there is none, there are two, or the one that is given has more ids than the run.
    """
    if loaded.tokenizer is not None:
        if given is not None:
            raise ConfigError(f"--tokenizer {given}: {run} has its own ({TOKENIZER_FILE}); leave the option out")
        return loaded.tokenizer
    if given is None:
        raise ConfigError(f"{run}: has no {TOKENIZER_FILE}, since its data had none; --tokenizer PATH gives one")
    with raising_config_errors():
        tokenizer = _read_tokenizer(given)
    known = loaded.config.model.get("vocab_size")
    if known is not None and tokenizer.vocab_size > known:
        raise ConfigError(
            f"--tokenizer {given}: has {tokenizer.vocab_size:,} ids, but the model of {run} has {known:,}: it is not "
            "the one of its data"
        )
    return tokenizer


def _read_tokenizer(path: Path) -> "StoredTokenizer":
    """Return the tokenizer in a file, or in a folder; raise ValueError if there is none, or it is damaged."""
    from lmtrain.convert.nanogpt_characters import CHARACTERS_FILE, read_characters
    from lmtrain.data.stored_tokenizer import load_tokenizer

    inside = next((path / name for name in (TOKENIZER_FILE, CHARACTERS_FILE) if (path / name).is_file()), None)
    if (file := inside or path).is_dir():
        raise ValueError(f"--tokenizer {path}: no {TOKENIZER_FILE} and no {CHARACTERS_FILE} there")
    if not file.is_file():
        raise ValueError(f"--tokenizer {path}: no such file or folder")
    return read_characters(file) if file.suffix == ".pkl" else load_tokenizer(file.parent, file.name)
