"""Runs whose batch, length, weight decay and momentum change: their data, their tokens, and every resume."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.compiler import NEEDS_A_COMPILER
from support.tiny_trainer import assert_same_bits, make_trainer, timeless_metrics, tiny_llama, weights
from support.tokens import VOCAB_SIZE
from torch import Tensor, nn

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.data.loader import TokenLoader
from lmtrain.errors import DivergedError
from lmtrain.files.metrics import read_metrics
from lmtrain.model.llama import Llama
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.lion import lion
from lmtrain.optimizer.muon import muon
from lmtrain.optimizer.schedule_free import schedule_free
from lmtrain.system import System

# Steps of 8, 8, 4, 4, 16, 16, 16 and 16 sequences of 16 tokens each: they start after 0, 128, 256, 320, 384 … tokens.
BATCHES = [[200, 4], [350, 16]]
TOKENS = [128, 256, 320, 384, 640, 896, 1152, 1408]
LENGTHS = [[0, 4], [130, 8], [500, 16]]
LENGTH_OF_STEP = [4, 4, 8, 8, 8, 16, 16, 16]  # the second step starts before token 130
ALL = {
    "batch_schedule": BATCHES,
    "length_schedule": LENGTHS,
    "weight_decay_schedule": [[0, 0.0], [6, 1.0]],
    "momentum_schedule": [[1, 0.9], [5, 1.0]],
}


def recording(trainer: Any) -> list[Tensor]:
    """Return a list to which each forward in training adds its inputs."""
    seen: list[Tensor] = []
    model = trainer.model
    trainer.forward = lambda x, y: (seen.append(x) if model.training else None, model(x, y))[1]
    return seen


def test_the_data_has_the_same_order_whatever_the_size_of_steps(token_folder: Path, tmp_path: Path) -> None:
    ramp = make_trainer(token_folder, tmp_path / "ramp", batch_schedule=BATCHES, length_schedule=LENGTHS)
    batches = recording(ramp)
    ramp.fit()
    constant = make_trainer(token_folder, tmp_path / "constant", max_steps=11)
    expected = recording(constant)
    constant.fit()
    assert torch.equal(torch.cat([x.flatten() for x in batches]), torch.cat([x.flatten() for x in expected]))
    assert (ramp.state.samples, ramp.state.tokens) == (constant.state.samples, constant.state.tokens) == (88, 1408)
    lines = read_metrics(tmp_path / "ramp" / "metrics.jsonl")
    assert [line["tokens"] for line in lines] == TOKENS
    per_step = np.diff([0, *TOKENS])
    assert [line["tokens_per_second"] * line["step_time_ms"] / 1000 for line in lines] == pytest.approx(list(per_step))
    rest = iter(batches)
    lengths = [{x.shape[1] for x in itertools.islice(rest, count // 64)} for count in per_step]
    assert lengths == [{length} for length in LENGTH_OF_STEP]
    assert {x.numel() for x in batches} == {64}


def test_a_step_of_short_sequences_has_the_gradients_of_those_pieces(token_folder: Path, tmp_path: Path) -> None:
    model = tiny_llama().double()
    trainer = make_trainer(
        token_folder,
        tmp_path / "out",
        model=model,
        max_steps=1,
        grad_clip=0.0,
        length_schedule=[[0, 4]],
        eval_interval=9,
    )
    reference = tiny_llama().double()
    trainer.optimizer.register_step_pre_hook(lambda *_: grads.extend(p.grad.clone() for p in model.parameters()))
    grads: list[Tensor] = []
    trainer.fit()
    loader = trainer.train_loader
    x, y = (torch.cat(parts) for parts in zip(loader.batch(0), loader.batch(1), strict=True))
    losses = []
    for row, targets in zip(x, y, strict=True):
        for begin in range(0, 16, 4):  # positions and attention begin anew in each piece
            logits, _ = reference(row[None, begin : begin + 4])
            losses.append(nn.functional.cross_entropy(logits[0], targets[begin : begin + 4], reduction="sum"))
    (torch.stack(losses).sum() / y.numel()).backward()
    for grad, param in zip(grads, reference.parameters(), strict=True):
        torch.testing.assert_close(grad, param.grad, rtol=0.0, atol=1e-10)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_a_run_resumed_after_every_step_has_the_same_bits(token_folder: Path, tmp_path: Path, name: str) -> None:
    def trainer(out: str, max_steps: int) -> Any:
        model = tiny_llama(dropout=0.2)
        options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
        if name == "adamw":
            optimizer: Any = adamw(model.named_parameters(), **options, decay_follows_lr=False)
        else:
            options |= {"momentum": 0.95, "nesterov": True, "iterations": 5, "scale": "match_adamw"}
            options |= {"precision": "auto", "adamw_lr_scale": 0.5, "cautious_decay": True}
            optimizer = muon(model.named_parameters(), **options)
        return make_trainer(
            token_folder, tmp_path / out, model=model, optimizer=optimizer, max_steps=max_steps, eval_interval=1, **ALL
        )

    never = trainer("never", 8)
    never.fit()
    for step in range(1, 9):
        torch.manual_seed(step)  # as in another process
        resumed = trainer("stopped", step)
        resumed.fit()
    assert_same_bits(weights(never), weights(resumed))
    assert timeless_metrics(tmp_path / "never") == timeless_metrics(tmp_path / "stopped")


def test_scheduled_values_are_not_saved_as_changes_of_the_optimizer(token_folder: Path, tmp_path: Path) -> None:
    """A resume with another table, or without one, has the values of the config, and not those of the last step."""
    trainer = make_trainer(token_folder, tmp_path / "out", max_steps=4, **ALL)
    used: list[tuple[float, float]] = []
    groups = trainer.optimizer.param_groups
    trainer.optimizer.register_step_pre_hook(lambda *_: used.append((groups[0]["weight_decay"], groups[0]["betas"][0])))
    trainer.fit()
    shares = [0.9, 0.9, 0.925, 0.95]
    assert used == [pytest.approx((0.1 * step / 6, 0.9 * shares[step])) for step in range(4)]
    assert (groups[0]["weight_decay"], groups[0]["betas"], groups[1]["weight_decay"]) == (0.1, (0.9, 0.95), 0.0)
    saved = CheckpointFolder(tmp_path / "out" / "checkpoints").load_latest()
    assert saved is not None
    assert saved.state["optimizer_groups"] == [{}, {}]


def test_an_error_in_an_update_leaves_the_values_of_the_config(token_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(token_folder, tmp_path / "out", **ALL)

    def fails(*_: Any) -> None:
        assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.0
        raise MemoryError

    trainer.optimizer.register_step_pre_hook(fails)
    with pytest.raises(MemoryError):
        trainer.fit()
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.1


@pytest.mark.parametrize("rates", [[1e-3, 1e-2, 5e-3, 0.0, 2e-3], [1e-2] * 5])
@pytest.mark.parametrize("make", [adamw, lion], ids=["adamw", "lion"])
def test_decay_that_does_not_follow_the_rate_shrinks_each_step_alike(
    token_folder: Path, tmp_path: Path, make: Any, rates: list[float]
) -> None:
    """Without gradients, only weight decay moves the weights: each step multiplies them by 1 - peak rate · decay."""
    model = tiny_llama().double()
    options: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "decay_follows_lr": False}
    options |= {"eps": 1e-8} if make is adamw else {}
    rules = [{"role": "embedding", "lr_scale": 0.5}, {"names": "layers.1.*", "lr_scale": 0.0}]
    optimizer = make(model.named_parameters(), rules=rules, **options)
    trainer = make_trainer(
        token_folder, tmp_path / "out", model=model, optimizer=optimizer, schedule=lambda step: rates[step]
    )
    before = {name: param.detach().clone() for name, param in model.named_parameters()}
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    for step in range(5):
        trainer.schedules.set_learning_rate(step)
        with trainer.schedules.values(step):
            optimizer.step()
    for name, param in model.named_parameters():
        scale = 0.5 if name.startswith("embedding") else 0.0 if name.startswith("layers.1.") else 1.0
        factor = (1 - 1e-2 * scale * 0.1) ** 5 if param.ndim >= 2 else 1.0
        torch.testing.assert_close(param.detach(), factor * before[name], rtol=1e-14, atol=0.0)


class Poisoned(Llama):
    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, loss = super().forward(tokens, targets)
        poison = bool((tokens == VOCAB_SIZE - 1).all(dim=1).any())
        return logits, loss * float("nan") if loss is not None and self.training and poison else loss


def test_a_rewind_skips_the_samples_of_the_bad_step_and_goes_back_in_the_schedule(
    token_folder: Path, tmp_path: Path
) -> None:
    tokens = np.fromfile(token_folder / "train.bin", "<u2")
    tokens[16 * 30 : 16 * 30 + 17] = VOCAB_SIZE - 1  # in step 5, which has the samples 24 to 39
    tokens.tofile(token_folder / "train.bin")
    torch.manual_seed(0)
    trainer = make_trainer(
        token_folder,
        tmp_path / "out",
        model=Poisoned(VOCAB_SIZE, 16, n_layer=1, n_head=2, n_kv_head=2, d_model=16, d_ff=16),
        order="sequential",
        on_bad_step="rewind",
        checkpoint_interval=3,
        batch_schedule=BATCHES,
        length_schedule=[[0, 8]],
    )
    trainer.fit()
    # Back to step 3 with 320 tokens: a step of 4 sequences from sample 40 on, and then four of 16.
    assert (trainer.state.bad_steps, trainer.state.tokens, trainer.state.samples) == (1, TOKENS[-1], 40 + 4 + 4 * 16)
    stopping = make_trainer(
        token_folder, tmp_path / "stop", model=trainer.model, order="sequential", batch_schedule=BATCHES
    )
    with pytest.raises(DivergedError):
        stopping.fit()
    (kept,) = (tmp_path / "stop" / "bad-batches").iterdir()
    assert kept.name == "step-00000005-sample-000000000024.json"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weight_decay_schedule": [[0, 1.0]]}, "SGD has no weight decay here, so there is nothing to change"),
        ({"momentum_schedule": [[0, 1.0]]}, "SGD has neither momentum nor betas; leave the schedule out"),
    ],
)
def test_an_optimizer_without_the_value_is_refused(
    token_folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    model = tiny_llama()
    plain = torch.optim.SGD(model.parameters(), lr=1e-2)
    with pytest.raises(ValueError, match=f"^trainer.{next(iter(changes))}: {message}"):
        make_trainer(token_folder, tmp_path / "out", model=model, optimizer=plain, **changes)


def test_the_betas_of_a_schedule_free_optimizer_stay_the_same(token_folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("schedulefree")
    model = tiny_llama()
    optimizer = schedule_free(model.named_parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)
    with pytest.raises(ValueError, match=r"^trainer\.momentum_schedule: the betas of AdamWScheduleFree also say"):
        make_trainer(
            token_folder, tmp_path / "out", model=model, optimizer=optimizer, momentum_schedule=[[0, 0.9], [5, 1.0]]
        )


def test_a_momentum_of_one_is_refused_and_muons_own_is_changed_alone(token_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a share of 1\.2 at step 3 makes betas 1\.08, .* use shares below 1\.111"):
        make_trainer(token_folder, tmp_path / "out", momentum_schedule=[[0, 1.0], [3, 1.2]])
    model = tiny_llama()
    options: dict[str, Any] = {"nesterov": True, "iterations": 5, "scale": "match_adamw", "precision": "auto"}
    options |= {"lr": 1e-3, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8, "adamw_lr_scale": 1.0}
    optimizer = muon(model.named_parameters(), momentum=0.95, **options)
    trainer = make_trainer(
        token_folder, tmp_path / "out", model=model, optimizer=optimizer, momentum_schedule=[[0, 0.9], [10, 1.0]]
    )
    with trainer.schedules.values(5):
        found = {group["algorithm"]: group.get("momentum", group.get("betas")) for group in optimizer.param_groups}
    assert found == {"muon": pytest.approx(0.95 * 0.95), "adamw": (0.9, 0.95)}


@NEEDS_A_COMPILER
@pytest.mark.slow
def test_a_compiled_run_resumes_with_the_same_bits_in_each_length(token_folder: Path, tmp_path: Path) -> None:
    def trainer(out: str, max_steps: int) -> Any:
        torch.compiler.reset()  # as in another process
        system = System(device="cpu", compile=True)
        return make_trainer(
            token_folder, tmp_path / out, system=system, max_steps=max_steps, eval_interval=9, length_schedule=LENGTHS
        )

    never = trainer("never", 8)
    never.fit()
    for step in (3, 8):
        resumed = trainer("stopped", step)
        resumed.fit()
    assert_same_bits(weights(never), weights(resumed))
    with pytest.raises(ValueError, match=r"^trainer\.length_schedule: has 8 lengths with data\.block_size, but torch"):
        make_trainer(
            token_folder,
            tmp_path / "many",
            system=System(device="cpu", compile=True),
            loader=TokenLoader(str(token_folder), "train", 4, 128, seed=5),
            length_schedule=[[0, 1], *([at, 2**at] for at in range(1, 8))],
        )
