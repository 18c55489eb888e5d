"""Says which changes of a run keep its losses to the last bit, and which keep them up to the rounding of sums.

A row of `CHANGES` is a name, what it changes, and how close the losses stay: BITS for the same mathematics in the same
order, or SUMS where sums are added up in another order. To add a change, add a row.
"""

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from support.compiler import NEEDS_A_COMPILER
from support.tiny_trainer import make_trainer, tiny_llama

from lmtrain.files.metrics import read_metrics
from lmtrain.model import loss as loss_module
from lmtrain.system import System

BITS, SUMS = 0.0, 1e-5  # the largest relative difference of a loss
Change = Callable[[], AbstractContextManager[dict[str, Any]]]


@contextlib.contextmanager
def chunks(rows: int) -> Iterator[dict[str, Any]]:
    """The loss in chunks of so many rows, instead of whole logits."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loss_module, "CHUNK_ROWS", rows)
        patch.setattr(loss_module, "WHOLE_LOGITS", 0)
        yield {}


@contextlib.contextmanager
def trainer(**changes: Any) -> Iterator[dict[str, Any]]:
    """Other arguments of the trainer."""
    yield changes


@contextlib.contextmanager
def compiled() -> Iterator[dict[str, Any]]:
    """The model compiled, with the loss in chunks of which the compiler sees one operation."""
    with chunks(16):
        yield {"system": System(device="cpu", compile=True)}


@contextlib.contextmanager
def model(dropout: float = 0.0, **changes: Any) -> Iterator[dict[str, Any]]:
    """Other arguments of the model, which computes with the same weights."""
    yield {"model": tiny_llama(dropout, **changes)}


@contextlib.contextmanager
def compiled_recompute() -> Iterator[dict[str, Any]]:
    """The compiled model, which computes its layers again in the backward."""
    with compiled() as changes, model(recompute="layer") as other:
        yield {**changes, **other}


# (name, change, largest relative difference); a step has 2 micro-batches of 4 × 16 tokens
CHANGES = [
    pytest.param(lambda: trainer(), BITS, id="nothing"),
    pytest.param(lambda: trainer(log_interval=2), BITS, id="logging"),
    pytest.param(lambda: trainer(checkpoint_interval=3), BITS, id="checkpoints"),
    pytest.param(lambda: trainer(batch_size=8, gradient_accumulation_steps=1), SUMS, id="accumulation"),
    pytest.param(lambda: trainer(batch_size=2, gradient_accumulation_steps=4), SUMS, id="more-accumulation"),
    pytest.param(lambda: chunks(64), SUMS, id="one-chunk"),
    pytest.param(lambda: chunks(16), SUMS, id="chunks"),
    pytest.param(lambda: chunks(13), SUMS, id="ragged-chunks"),
    pytest.param(lambda: model(attention="flash"), BITS, id="attention-flash"),
    pytest.param(lambda: model(attention="math"), SUMS, id="attention-math"),
    pytest.param(lambda: model(recompute="attention"), BITS, id="recompute-attention"),
    pytest.param(lambda: model(recompute="layer"), BITS, id="recompute-layer"),
    pytest.param(compiled_recompute, SUMS, id="compiled-recompute", marks=[NEEDS_A_COMPILER, pytest.mark.slow]),
    pytest.param(compiled, SUMS, id="compiled", marks=[NEEDS_A_COMPILER, pytest.mark.slow]),
]


def losses(folder: Path, out: Path, change: Change = trainer) -> dict[tuple[int, str], float]:
    with change() as changes:
        run = make_trainer(folder, out, **changes)
        run.fit()
    return {
        (line["step"], name): line[name]
        for line in read_metrics(out / "metrics.jsonl")
        for name in ("train/loss", "val/loss")
        if name in line
    }


@pytest.mark.parametrize(("change", "relative"), CHANGES)
def test_the_losses_stay(token_folder: Path, tmp_path: Path, change: Change, relative: float) -> None:
    expected = losses(token_folder, tmp_path / "plain")
    changed = losses(token_folder, tmp_path / "changed", change)
    assert len(changed) >= 6
    assert changed == {key: pytest.approx(expected[key], rel=relative, abs=0) for key in changed}


@pytest.mark.parametrize("recompute", ["attention", "layer"])
def test_what_is_computed_again_drops_the_same_elements(token_folder: Path, tmp_path: Path, recompute: str) -> None:
    expected = losses(token_folder, tmp_path / "plain", lambda: model(0.2))
    assert losses(token_folder, tmp_path / "changed", lambda: model(0.2, recompute=recompute)) == expected
    assert losses(token_folder, tmp_path / "without", trainer) != expected
