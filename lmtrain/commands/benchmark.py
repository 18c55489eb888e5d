"""`python -m lmtrain benchmark [KIND] …`: measures speed against what the machine can do at best.

The contenders take turns, one round each, so that noise on the machine affects all of them alike. Only the ratio within
a round counts.
"""

import importlib
from collections.abc import Sequence

from lmtrain.config.overrides import refuse_several_runs
from lmtrain.errors import ConfigError

KINDS = {
    "step": "a training step, by phases, against what the machine can do at best (the default)",
    "loops": "the training loop against bare loops of the same model",
    "loss": "the loss over the vocabulary in chunks, against whole logits and the kernels of other libraries",
    "optimizers": "the update of every optimizer against AdamW's, alone and in a step, and its state",
    "sample": "generating text with and without a cache of keys and values, against transformers",
    "loader": "loading batches against stacked slices of a memmap, and against a plain memory copy of the same size",
    "prepare": "writing token files from text against running the tokenizer alone",
    "contention": "several runs at once on the same cores, for each way that OpenMP's threads can wait",
    "scaling": "several processes against one, and what they send each other",
    "checkpoint": "saving in the background against saving in the loop, and against a plain copy of the state",
    "startup": "the start of a run by phase, from the command to the end of its first step",
    "verdicts": "how often the verdicts of compare are wrong, in simulations whose truth is known",
}


def main(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in ("-h", "--help"):
        print("usage: python -m lmtrain benchmark [KIND] …\n\nEach kind has its own --help:")
        for kind, meaning in KINDS.items():
            print(f"  {kind:<10} {meaning}")
        return 0
    first = arguments[0] if arguments else ""
    if first and first not in KINDS and not first.startswith(("-", "+", "~")) and "=" not in first:
        raise ConfigError(f"benchmark {first}: no such kind; choose one of {', '.join(KINDS)}")
    refuse_several_runs("benchmark", arguments)
    kind, rest = (first, arguments[1:]) if first in KINDS else ("step", arguments)
    return int(importlib.import_module(f"lmtrain.benchmark.{kind}").main(rest))
