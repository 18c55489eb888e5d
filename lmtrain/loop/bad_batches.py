"""Saves the batches of bad steps for inspection: token ids, text, and their place in the data."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lmtrain.data.loader import IGNORE, TokenLoader
from lmtrain.files.durable import make_folder, write_atomically
from lmtrain.loop.bad_steps import BadStep

MAX_KEPT = 100  # files; each has about 20 bytes per token

Decode = Callable[[list[int]], str]


class BadBatches:
    """Writes `step-<step>-sample-<first sample>.json` files into a folder.

    `decode` turns token ids into text; None if the data has no tokenizer.
    """

    def __init__(self, folder: Path, loader: TokenLoader, decode: Decode | None) -> None:
        self.folder, self.loader, self.decode = folder, loader, decode

    def keep(self, bad: BadStep) -> Path:
        """Write the samples of a bad step to a file and return its path.

        The samples are loaded again by their place in the data order. Once there are MAX_KEPT files, nothing more is
        written.
        """
        size = self.loader.batch_size
        first = bad.first_sample // size
        content = {
            "step": bad.step,
            "reason": str(bad),
            "loss": _finite(bad.loss),
            "grad_norm": _finite(bad.grad_norm),
            "micro_batches": [
                {"loss": _finite(loss), "samples": self._samples(first + number)}
                for number, loss in enumerate(bad.micro_batch_losses)
            ],
        }
        make_folder(self.folder)
        path = self.folder / f"step-{bad.step:08d}-sample-{bad.first_sample:012d}.json"
        if len(list(self.folder.glob("step-*.json"))) >= MAX_KEPT:
            return self.folder / "(full)"
        write_atomically(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        return path

    def _samples(self, index: int) -> Sequence[dict[str, Any]]:
        x, y = self.loader.batch(index)
        locate = getattr(self.loader, "locate_batch", None)  # a user's loader may have no files
        places = locate(index) if locate else [None] * len(x)
        samples = []
        for row, (inputs, targets, place) in enumerate(zip(x.tolist(), y.tolist(), places, strict=True)):
            ids = inputs + [target for target in targets[-1:] if target != IGNORE]
            sample: dict[str, Any] = {"sample": index * len(x) + row}
            if place is not None:
                sample |= {"file": str(place[0]), "token": place[1]}
            samples.append(sample | {"ids": ids} | ({"text": self.decode(ids)} if self.decode else {}))
        return samples


def _finite(number: float) -> float | str:
    return number if math.isfinite(number) else str(number)
