"""`python -m lmtrain prepare data=NAME [overrides]`: text to token files."""

import argparse
from collections.abc import Sequence

from lmtrain.commands.help import PREPARE_GROUPS, list_choices
from lmtrain.config.build import raising_config_errors
from lmtrain.config.check import check
from lmtrain.config.compose import compose
from lmtrain.config.token_files import ensure_tokens
from lmtrain.errors import ConfigError
from lmtrain.terminal.console import console
from lmtrain.terminal.options import OptionParser

EPILOG = """\
your own text:  python -m lmtrain prepare data=text prepare.source.files='books/*.txt' data.path=data/books
then train:     python -m lmtrain data=tokens data.path=data/books model=llama_1m
look at it:     python -m lmtrain inspect data/books

choices:
"""


def main(arguments: Sequence[str]) -> int:
    parser = OptionParser(
        prog="python -m lmtrain prepare",
        description="Makes the token files that a data choice reads: text, from a source, through a tokenizer, some of "
        "it held out for validation.\nKilled, it goes on when started again. Training does the same by itself where "
        "the files are missing.",
        epilog=EPILOG + "\n".join(list_choices(group) for group in ("data", *PREPARE_GROUPS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", nargs="*", help="data=…, data.path=…, prepare/tokenizer=…, prepare.…=…")
    options = parser.read(arguments)
    cfg = check(compose(options.overrides), groups=["prepare", "data"])
    if cfg.prepare is None:
        named = f"data.path={cfg.data.path}" if "path" in cfg.data else "data"  # a mixture has several
        raise ConfigError(f"{named}: this data choice has no recipe (prepare); its token files are made elsewhere")
    with raising_config_errors():
        try:
            made = ensure_tokens(cfg, check_text=True)
        except KeyboardInterrupt:
            console.print("stopped; the same command goes on from here")
            raise
    if not made:
        console.print(f"{cfg.data.path} is there already, made from this text with these settings")
    return 0
