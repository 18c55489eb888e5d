"""`python -m lmtrain benchmark [KIND] …`: speed, against what the machine does by itself.

Contenders take turns, a round each, so that a noisy machine is as noisy for one as for the other; what counts is the
ratio within a round.
"""

import importlib
from collections.abc import Sequence

from lmtrain.errors import ConfigError

KINDS = {
    "step": "a training step against bare loops; what `benchmark` alone means",
    "loader": "batches against stacked slices of a memmap, and against a plain copy of the same memory",
    "prepare": "text to token files against the tokenizer alone",
    "contention": "several runs at once on the same cores, by how OpenMP's threads wait",
    "checkpoint": "saving beside training against saving in it, and against a plain copy of the state",
}


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print("python -m lmtrain benchmark [KIND] …, each with its own --help:")
        for kind, meaning in KINDS.items():
            print(f"  {kind:<10} {meaning}")
        return 0
    first = arguments[0] if arguments else ""
    if first and first not in KINDS and not first.startswith(("-", "+", "~")) and "=" not in first:
        raise ConfigError(f"benchmark {first}: no such kind; there are {', '.join(KINDS)}")
    kind, rest = (first, arguments[1:]) if first in KINDS else ("step", arguments)
    return int(importlib.import_module(f"lmtrain.benchmark.{kind}").main(rest))
