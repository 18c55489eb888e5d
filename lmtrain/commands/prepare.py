"""`python -m lmtrain prepare data=NAME [overrides]`: text to token files."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lmtrain.commands.help_text import shipped_and_own
from lmtrain.config import ConfigError, check, compose, mistakes_of_the_user
from lmtrain.console import console
from lmtrain.preflight import ensure_tokens


def main(arguments: Sequence[str]) -> int:
    choices = shipped_and_own("data")
    parser = argparse.ArgumentParser(
        prog="python -m lmtrain prepare",
        description="Makes the token files that a data choice reads, from text, with a tokenizer trained on it. "
        "Training does the same by itself where they are missing.",
        epilog="Your own text: python -m lmtrain prepare data=text prepare.source.files='books/*.txt' "
        "data.path=data/books; then train with data=tokens data.path=data/books.",
    )
    parser.add_argument("overrides", nargs="*", help=f"data={{{','.join(choices)}}}, data.path=…, prepare.…=…")
    options = parser.parse_args(list(arguments))
    cfg = check(compose(options.overrides), groups=["prepare", "data"])
    if cfg.prepare is None:
        raise ConfigError(
            f"data={cfg.data.path}: this data choice has no recipe (prepare); its token files are made elsewhere"
        )
    there = Path(cfg.data.path).exists()
    with mistakes_of_the_user():
        ensure_tokens(cfg)
    if there:
        console.print(f"{cfg.data.path} is there already, made with these settings")
    return 0
