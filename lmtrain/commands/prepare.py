"""`python -m lmtrain prepare data=NAME [overrides]`: turns text into token files."""

import argparse
from collections.abc import Sequence

from lmtrain.commands.help import PREPARE_GROUPS, list_choices
from lmtrain.config.build import raising_config_errors
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.config.overrides import refuse_several_runs
from lmtrain.config.token_files import ensure_tokens
from lmtrain.errors import ConfigError
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser

EPILOG = """\
prepare your own text:  python -m lmtrain prepare data=text prepare.source.files='books/*.txt' data.path=data/books
train on it:            python -m lmtrain data=tokens data.path=data/books model=llama_1m
inspect the result:     python -m lmtrain inspect data/books

choices:
"""


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain prepare",
        description="Makes the token files of a data choice: reads text from a source, holds some of it out for "
        "validation, and encodes it\nwith a tokenizer. If it is stopped, the same command continues where it left off. "
        "Training prepares missing files by itself.",
        epilog=EPILOG + "\n".join(list_choices(group) for group in ("data", *PREPARE_GROUPS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="data=…, data.path=…, prepare/tokenizer=…, prepare.…=…")
    refuse_several_runs("prepare", arguments)
    options = parser.read(arguments)
    cfg = check(compose(options.overrides), groups=["prepare", "data"])
    if cfg.prepare is None:
        named = f"data.path={cfg.data.path}" if "path" in cfg.data else "data"  # a mixture has several
        raise ConfigError(
            f"{named}: this data choice has no recipe to prepare token files; choose one that has, such as data=text"
        )
    with raising_config_errors():
        try:
            made = ensure_tokens(cfg, check_text=True)
        except KeyboardInterrupt:
            console.print("stopped; run the same command again to continue")
            raise
    if not made:
        console.print(f"{cfg.data.path} is up to date: it was made from this text with these settings")
    return 0
