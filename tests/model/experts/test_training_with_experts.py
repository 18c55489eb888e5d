"""Biases of experts follow the load of whole steps, leave bad steps out, and survive stops and kills bit for bit."""

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_trainer import assert_same_bits, make_trainer, timeless_metrics
from support.tokens import TINY, VOCAB_SIZE
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lmtrain.loop.update import update
from lmtrain.model.decoder import Decoder
from lmtrain.model.experts.mixture import MixtureOfExperts
from lmtrain.trainer import Trainer

RATE = 0.01
POISON = VOCAB_SIZE - 1
Cli = Callable[..., Any]


class Poisoned(Decoder):
    """Makes the loss NaN if a sequence of the micro-batch is all POISON."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor | None, Tensor | None]:
        logits, loss = super().forward(tokens, targets)
        if loss is not None and self.training and bool((tokens == POISON).all(dim=1).any()):
            loss = loss * math.nan
        return logits, loss


def model(**changes: Any) -> Poisoned:
    torch.manual_seed(0)
    mlp = partial(MixtureOfExperts, n_expert=4, n_active=2, n_shared=1, d_expert=16, router="sigmoid", bias_rate=RATE)
    return Poisoned(VOCAB_SIZE, 16, 2, 4, 2, 32, 64, **{"mlp": mlp, "dropout": 0.1, **changes})


class Spy:
    """Calls a function after each update, before the modules that come after it in the list."""

    def __init__(self, look: Callable[[], None]) -> None:
        self.look = look

    def after_update(self, bad: Tensor) -> None:
        self.look()


def trainer(folder: Path, out: Path, **changes: Any) -> Trainer:
    return make_trainer(folder, out, **{"model": model(), **changes})


def state(made: Trainer) -> list[Tensor]:
    return [tensor.clone() for tensor in made.model.state_dict().values()]


def biases(made: Trainer) -> list[Tensor]:
    return [module.bias.clone() for module in made.updated_modules]


@pytest.fixture
def poisoned_folder(token_folder: Path) -> Path:
    """Return data whose sequential sample 34, in step 5, is poison."""
    tokens = np.fromfile(token_folder / "train.bin", "<u2")
    tokens[16 * 34 : 16 * 34 + 17] = POISON
    tokens.tofile(token_folder / "train.bin")
    return token_folder


@pytest.mark.parametrize("recompute", ["none", "layer"])
@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4)])
def test_the_load_of_a_step_does_not_depend_on_micro_batches(
    token_folder: Path, tmp_path: Path, batch_size: int, accumulation: int, recompute: str
) -> None:
    """A token is routed the same in every micro-batch: in float64, rounding is far too small to change a pick."""

    def loads(name: str, **changes: Any) -> list[Tensor]:
        architecture = model(dropout=0.0, recompute=changes.pop("recompute", "none")).double()
        made = trainer(token_folder, tmp_path / name, model=architecture, max_steps=1, **changes)
        seen = []
        made.updated_modules.insert(
            0, Spy(lambda: seen.extend(module.load.clone() for module in made.updated_modules[1:]))
        )
        made.fit()
        assert all(load.sum() == 2 * 8 * 16 for load in seen)  # two experts of each token of eight sequences
        return [*seen, *(module.bias for module in made.updated_modules[1:])]

    ours = loads("ours", batch_size=batch_size, gradient_accumulation_steps=accumulation, recompute=recompute)
    assert len(ours) == 4
    assert_same_bits(ours, loads("other", batch_size=4, gradient_accumulation_steps=2))


def test_every_step_moves_the_biases_and_logs_the_imbalance(token_folder: Path, tmp_path: Path) -> None:
    made = trainer(token_folder, tmp_path / "out")
    made.fit()
    for bias in biases(made):
        steps = bias / RATE
        torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-4)
        assert bias.abs().max() <= 8.01 * RATE
    assert any(bias.any() for bias in biases(made))
    assert all(1 <= line["moe/imbalance"] <= 2 for line in timeless_metrics(tmp_path / "out"))  # at most 4 / 2
    assert not any("moe/imbalance" in line for line in dense_lines(token_folder, tmp_path / "dense"))


def dense_lines(folder: Path, out: Path) -> list[dict[str, float]]:
    make_trainer(folder, out, max_steps=1).fit()
    return timeless_metrics(out)


def test_a_resumed_run_has_the_same_bits_as_an_uninterrupted_run(token_folder: Path, tmp_path: Path) -> None:
    never = trainer(token_folder, tmp_path / "never")
    never.fit()
    trainer(token_folder, tmp_path / "stopped", max_steps=4).fit()
    torch.manual_seed(99)  # as in another process, whose random generators have another state
    resumed = trainer(token_folder, tmp_path / "stopped")
    assert resumed.state.step == 4
    assert any(bias.any() for bias in biases(resumed))
    resumed.fit()
    assert_same_bits(state(never), state(resumed))
    assert timeless_metrics(tmp_path / "never") == timeless_metrics(tmp_path / "stopped")


def test_a_bad_step_leaves_the_biases(poisoned_folder: Path, tmp_path: Path) -> None:
    made = trainer(poisoned_folder, tmp_path / "out", order="sequential", on_bad_step="skip")
    one_step, unchanged = made.step, []

    def step() -> Any:
        before = state(made)
        outcome = one_step()
        same = [torch.equal(one, other) for one, other in zip(before, state(made), strict=True)]
        unchanged.extend([made.state.step] * all(same))
        return outcome

    made.step = step  # type: ignore[method-assign]
    made.fit()
    assert unchanged == [5]
    assert not any(module.load.any() for module in made.updated_modules)


def test_a_rewound_run_ends_as_one_that_never_met_the_bad_data(poisoned_folder: Path, tmp_path: Path) -> None:
    made = trainer(poisoned_folder, tmp_path / "out", order="sequential", on_bad_step="rewind")
    made.fit()
    assert made.state.rewinds == 1
    reference = trainer(poisoned_folder, tmp_path / "other", order="sequential", max_steps=4)
    reference.fit()
    reference = trainer(poisoned_folder, tmp_path / "other", order="sequential")
    reference.state.samples += 8  # the rewind goes to step 4, and leaves out the samples of step 5
    reference.fit()
    assert_same_bits(biases(made), biases(reference))


class NoWaiting(TorchDispatchMode):
    """Fails on any operation that reads a tensor's value on the host, which would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "waited for a value"
        return func(*args, **(kwargs or {}))


def test_moving_the_biases_reads_no_value_on_the_host() -> None:
    module = MixtureOfExperts(16, 24, 4, 2, bias_rate=RATE)
    module.count(torch.tensor([3, 1, 0, 0]))
    optimizer = torch.optim.AdamW([torch.zeros(3, requires_grad=True)], fused=True)
    with NoWaiting():
        update(optimizer, torch.amp.GradScaler("cpu", enabled=False), torch.tensor(False), [module])
    torch.testing.assert_close(module.bias, torch.tensor([-RATE, 0.0, RATE, RATE]))


@pytest.mark.slow
def test_the_shipped_mixture_survives_kills_bit_for_bit(token_folder: Path, tmp_path: Path, cli: Cli) -> None:
    tiny = [text for text in TINY if not text.startswith("model=")]
    changes = ["model=moe_1m", "model.mlp.n_expert=4", f"model.mlp.bias_rate={RATE}", "model.recompute=layer"]
    options = ["--kills", "1", "--steps", "6", "--json", "out.json"]
    done = cli("verify-resume", *changes, *tiny, f"data.path={token_folder}", *options, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "out.json").read_text())["bit_for_bit"] is True
