"""The training step against references, and changes that must not alter a bit of it."""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.compiler import NEEDS_A_COMPILER
from support.tiny_trainer import Prodigal, assert_same_bits, make_trainer, timeless_metrics, tiny_llama, weights
from support.tokens import VOCAB_SIZE, write_tokens
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.data.loader import IGNORE, TokenLoader
from lmtrain.data.prefetch import Prefetcher
from lmtrain.errors import DivergedError
from lmtrain.files.metrics import read_metrics
from lmtrain.loop.evaluation import evaluate, perplexity
from lmtrain.model.llama import Llama
from lmtrain.scheduler import cosine
from lmtrain.system import System
from lmtrain.trainer import Trainer
from lmtrain.verify.device.numbers.rounding import FLOAT32, rounding_error

# It takes about a million roundings in float64 to be this far off.
CLOSE = {"rtol": 0.0, "atol": 1e-10}
# AdamW divides a gradient by its size, or by its eps of 1e-8 if that is larger. Where gradients cancel to 1e-15, a step
# with a learning rate of 1e-2 may go anywhere within 1e-9.
CLOSE_AFTER_ADAMW = {"rtol": 0.0, "atol": 1e-8}
# The trainer adds the losses of two micro-batches in float32: two roundings of at most 2⁻²² while the sum is below 8.
LOSS_ROUNDING = 2 * 2.0**-22


class KeepsGradients(torch.optim.SGD):
    """Keeps the gradients of a step and changes no parameter."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.seen = [param.grad.clone() for group in self.param_groups for param in group["params"]]


def gradients(folder: Path, out: Path, batch_size: int, accumulation: int, loader: Any = None) -> list[Tensor]:
    model = tiny_llama().double()
    optimizer = KeepsGradients(model.parameters(), lr=0.0)
    trainer = make_trainer(
        folder,
        out,
        model=model,
        optimizer=optimizer,
        batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        grad_clip=0.0,
        loader=loader,
    )
    with Prefetcher(trainer.train_loader.batch, 0, torch.device("cpu")) as trainer.micro_batches:
        loss, _ = trainer.step()
    assert loss.isfinite()
    return optimizer.seen


def test_gradients_do_not_depend_on_the_split_into_micro_batches(token_folder: Path, tmp_path: Path) -> None:
    whole = gradients(token_folder, tmp_path / "a", 8, 1)
    assert max(grad.abs().max() for grad in whole) > 1e-3
    for batch_size, accumulation in ((4, 2), (1, 8)):
        split = gradients(token_folder, tmp_path / f"split{batch_size}", batch_size, accumulation)
        for one, other in zip(whole, split, strict=True):
            torch.testing.assert_close(one, other, **CLOSE)


class Ragged(TokenLoader):
    """Loads micro-batches with different numbers of targets; one has none."""

    def batch(self, index: int) -> tuple[Tensor, Tensor]:
        x, y = super().batch(index)
        y[:, 16 - 5 * (index % 4) :] = IGNORE
        if index % 4 == 3:
            y[:] = IGNORE
        return x, y


def test_ragged_micro_batches_are_weighted_by_their_targets(token_folder: Path, tmp_path: Path) -> None:
    loader = Ragged(str(token_folder), "train", 2, 16, seed=5)
    got = gradients(token_folder, tmp_path / "out", 2, 4, loader)
    model = tiny_llama().double()
    x, y = (torch.cat(parts) for parts in zip(*(loader.batch(i) for i in range(4)), strict=True))
    logits, _ = model(x)
    kept = y != IGNORE
    loss = -logits.log_softmax(-1)[kept].gather(1, y[kept][:, None]).sum() / kept.sum()  # by hand
    loss.backward()
    for param, grad in zip(model.parameters(), got, strict=True):
        torch.testing.assert_close(grad, param.grad, **CLOSE)


def test_a_run_equals_a_loop_written_by_hand(token_folder: Path, tmp_path: Path) -> None:
    changes = {"model": tiny_llama().double(), "eval_interval": 100, "checkpoint_interval": 100}
    trainer = make_trainer(token_folder, tmp_path / "out", **changes)
    trainer.fit()
    trained = [line["train/loss"] for line in read_metrics(tmp_path / "out" / "metrics.jsonl")]

    model = tiny_llama().double()
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
            {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=1e-2,
        betas=(0.9, 0.95),
        fused=True,
    )
    loader = TokenLoader(str(token_folder), "train", 4, 16, seed=5)
    for step, expected in enumerate(trained):
        optimizer.param_groups[0]["lr"] = optimizer.param_groups[1]["lr"] = cosine(
            step, lr=1e-2, min_lr=1e-3, warmup_steps=2, max_steps=8
        )
        total = 0.0
        for micro_step in range(2):
            x, y = loader.batch(2 * step + micro_step)
            loss = nn.functional.cross_entropy(model(x)[0].flatten(0, 1), y.flatten())
            (loss / 2).backward()
            total += loss.item() / 2
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert expected == pytest.approx(total, abs=LOSS_ROUNDING)
    for one, other in zip(weights(trainer), model.parameters(), strict=True):
        torch.testing.assert_close(one, other.detach(), **CLOSE_AFTER_ADAMW)
    assert trained[-1] < trained[0] - 0.3


# The losses of the first steps since the step was last changed on purpose. To renew them, run with -k golden, find out
# why they changed, and copy the numbers from the failure.
GOLDEN = [4.147879, 4.088176, 3.990192, 3.860933]


# Between vector units, torch's normal draws differ by up to 4e-8 in the initial weights. The loss changes by that times
# the sum of the absolute gradients, which is about 40.
INITIAL_WEIGHTS = 40 * 4e-8


def exact_losses(folder: Path, out: Path, **changes: Any) -> tuple[list[float], list[float]]:
    """Return the losses of a run in float64, and how far the losses in float32 may be from them."""
    runs: list[Path] = []

    def losses() -> list[Tensor]:
        runs.append(out / str(len(runs)))
        make_trainer(folder, runs[-1], model=tiny_llama().double(), eval_batches=1, **changes).fit()
        return [torch.tensor(line["train/loss"]).double() for line in read_metrics(runs[-1] / "metrics.jsonl")]

    out.mkdir()
    longest_sum = 64  # tokens of a micro-batch, or d_ff
    errors = [error + LOSS_ROUNDING for error in rounding_error(losses, longest_sum, FLOAT32)]
    return [loss.item() for loss in losses()], errors


def test_golden_steps(token_folder: Path, tmp_path: Path) -> None:
    exact, errors = exact_losses(token_folder, tmp_path / "exact", max_steps=4)
    six_digits = 0.5e-6
    assert exact == pytest.approx(GOLDEN, abs=LOSS_ROUNDING + INITIAL_WEIGHTS + six_digits)
    make_trainer(token_folder, tmp_path / "out", max_steps=4).fit()
    lines = read_metrics(tmp_path / "out" / "metrics.jsonl")
    for line, loss, error in zip(lines, exact, errors, strict=True):
        assert line["train/loss"] == pytest.approx(loss, abs=error)


def test_clipping_limits_the_gradient_norm(token_folder: Path, tmp_path: Path) -> None:
    model = tiny_llama().double()
    optimizer = KeepsGradients(model.parameters(), lr=0.0)
    trainer = make_trainer(token_folder, tmp_path / "out", model=model, optimizer=optimizer, grad_clip=0.01)
    with Prefetcher(trainer.train_loader.batch, 0, torch.device("cpu")) as trainer.micro_batches:
        _, norm = trainer.step()
    assert norm > 0.1
    clipped = math.sqrt(sum(grad.square().sum().item() for grad in optimizer.seen))
    assert clipped == pytest.approx(0.01, rel=1e-5)  # torch divides by the norm + 1e-6


def test_evaluation_is_the_mean_over_every_target_of_the_split(token_folder: Path, tmp_path: Path) -> None:
    model = tiny_llama(dropout=0.5).double()
    loader = TokenLoader(str(token_folder), "val", 3, 16, seed=0)
    tokens = torch.from_numpy(loader.samples.tokens.span(0, loader.total_tokens).astype("int64"))
    model.eval()
    losses = []
    for start in range(0, len(tokens) - 1, 16):
        window = tokens[start : start + 17]
        logits, _ = model(window[None, :-1])
        losses.append(nn.functional.cross_entropy(logits[0], window[1:], reduction="none"))
    expected = torch.cat(losses).mean().item()
    assert len(torch.cat(losses)) == len(tokens) - 1
    model.train()
    got = evaluate(model, model, loader.whole_split(), System(device="cpu"))
    assert got == pytest.approx(expected, abs=CLOSE["atol"])
    assert model.training


def test_evaluation_skips_batches_without_targets(token_folder: Path) -> None:
    model = tiny_llama().double()
    batches = list(TokenLoader(str(token_folder), "val", 3, 16, seed=0).whole_split())
    x, y = batches[0]
    empty = x, torch.full_like(y, IGNORE)
    got, expected = (evaluate(model, model, each, System(device="cpu")) for each in ([empty, *batches], batches))
    assert got == expected


def test_logged_metrics(token_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(token_folder, tmp_path / "out", max_steps=6, log_interval=2, eval_train_batches=2)
    trainer.fit()
    lines = {int(line["step"]): line for line in read_metrics(tmp_path / "out" / "metrics.jsonl")}
    assert list(lines) == [1, 2, 4, 6]  # the first, every second; evaluations at 4 and at the end
    assert all("val/loss" in lines[step] for step in (4, 6))
    assert "val/loss" not in lines[2]
    last = lines[6]
    assert last["val/perplexity"] == pytest.approx(math.exp(last["val/loss"]))
    bytes_per_token = 3  # of the text that write_tokens claims
    assert last["val/bits_per_byte"] == pytest.approx(last["val/loss"] / math.log(2) / bytes_per_token)
    assert last["tokens"] == 6 * 2 * 4 * 16
    assert last["lr"] == pytest.approx(cosine(5, lr=1e-2, min_lr=1e-3, warmup_steps=2, max_steps=8))
    assert last["tokens_per_second"] == pytest.approx(2 * 4 * 16 / last["step_time_ms"] * 1000)
    assert last["train_eval/loss"] == pytest.approx(trainer.evaluator.loss(trainer.train_loader, 2 * 4))
    assert "mfu" not in last  # unknown for a CPU
    assert trainer.state.best_val_loss == min(line["val/loss"] for line in lines.values() if "val/loss" in line)


def test_perplexity_of_a_huge_loss_is_infinite() -> None:
    assert perplexity(1.0) == pytest.approx(math.e)
    assert perplexity(1e4) == math.inf


def test_evaluating_and_saving_more_often_does_not_change_a_bit(token_folder: Path, tmp_path: Path) -> None:
    runs = []
    for number, every in enumerate((1, 100)):
        torch.manual_seed(3)
        trainer = make_trainer(
            token_folder,
            tmp_path / str(number),
            model=tiny_llama(dropout=0.3),
            eval_interval=every,
            checkpoint_interval=every,
            log_interval=every,
            eval_train_batches=every % 3,
        )
        trainer.fit()
        runs.append(weights(trainer))
    assert_same_bits(*runs)


@pytest.mark.parametrize("order", ["shuffle", "random", "sequential"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_resumed_run_has_the_same_bits_as_an_uninterrupted_run(
    token_folder: Path, tmp_path: Path, dtype: Any, order: Any
) -> None:
    def trainer(name: str, max_steps: int) -> Trainer:
        made = make_trainer(
            token_folder,
            tmp_path / name,
            model=tiny_llama(dropout=0.2),
            system=System(device="cpu", dtype=dtype),
            max_steps=max_steps,
            order=order,
        )
        assert made.scaler.is_enabled() == (dtype == "float16")
        return made

    never = trainer("never", 8)
    never.fit()
    trainer("stopped", 4).fit()
    torch.manual_seed(99)  # as in another process, whose random generators have another state
    resumed = trainer("stopped", 8)
    assert resumed.state.step == 4
    resumed.fit()
    assert_same_bits(weights(never), weights(resumed))
    assert never.scaler.state_dict() == resumed.scaler.state_dict()
    assert timeless_metrics(tmp_path / "never") == timeless_metrics(tmp_path / "stopped")


@pytest.mark.parametrize(("batch_size", "accumulation"), [(8, 1), (2, 4), (1, 8)])
def test_a_resume_with_another_micro_batch_size_keeps_state_and_data_order(
    token_folder: Path, tmp_path: Path, batch_size: int, accumulation: int
) -> None:
    def trainer(name: str, max_steps: int, **changes: Any) -> tuple[Trainer, list[Tensor]]:
        model = tiny_llama().double()
        made = make_trainer(token_folder, tmp_path / name, model=model, max_steps=max_steps, **changes)
        rows: list[Tensor] = []
        made.forward = lambda x, y: (rows.extend(x), model(x, y))[1] if model.training else model(x, y)
        return made, rows

    never, expected_rows = trainer("never", 8)
    never.fit()
    stopped, _ = trainer("stopped", 4)
    stopped.fit()
    resumed, rows = trainer("stopped", 8, batch_size=batch_size, gradient_accumulation_steps=accumulation)
    assert_same_bits(weights(stopped), weights(resumed))
    for param, other in zip(stopped.params, resumed.params, strict=True):
        for key, value in stopped.optimizer.state[param].items():
            assert torch.equal(value, resumed.optimizer.state[other][key])
    resumed.fit()
    assert_same_bits(expected_rows[4 * 8 :], rows)
    assert (never.state.samples, never.state.tokens) == (resumed.state.samples, resumed.state.tokens)
    for one, other in zip(weights(never), weights(resumed), strict=True):
        torch.testing.assert_close(one, other, **CLOSE_AFTER_ADAMW)


def test_a_resume_that_would_begin_inside_a_batch_is_refused(token_folder: Path, tmp_path: Path) -> None:
    make_trainer(token_folder, tmp_path / "out", max_steps=3).fit()
    with pytest.raises(ValueError, match=r"data\.batch_size=5: must divide the 24 samples"):
        make_trainer(token_folder, tmp_path / "out", batch_size=5)


def test_a_resume_restores_group_values_that_the_optimizer_changes_but_not_those_of_the_config(
    token_folder: Path, tmp_path: Path
) -> None:
    def trainer(name: str, max_steps: int, momentum: float = 0.5) -> Trainer:
        model = tiny_llama(dropout=0.1)
        optimizer = Prodigal(model.parameters(), lr=1.0, momentum=momentum)
        return make_trainer(token_folder, tmp_path / name, model=model, optimizer=optimizer, max_steps=max_steps)

    never = trainer("never", 8)
    never.fit()
    trainer("stopped", 4).fit()
    resumed = trainer("stopped", 8)
    assert resumed.optimizer.param_groups[0]["k"] == 4
    resumed.fit()
    assert_same_bits(weights(never), weights(resumed))
    changed = trainer("stopped", 9, momentum=0.9)  # as an allowed change of the config would
    assert changed.optimizer.param_groups[0]["momentum"] == 0.9


def test_resume_refuses_other_data(token_folder: Path, tmp_path: Path) -> None:
    make_trainer(token_folder, tmp_path / "out", max_steps=4).fit()
    other = write_tokens(tmp_path / "other", train=5000)
    with pytest.raises(ValueError, match="not the data that this run was trained on"):
        make_trainer(other, tmp_path / "out")


class NoWaiting(TorchDispatchMode):
    """Fails on any operation that reads a tensor's value on the host, which would wait for a GPU."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a step waited for a value"
        return func(*args, **(kwargs or {}))


def test_a_step_reads_no_value_on_the_host(token_folder: Path, tmp_path: Path) -> None:
    # The fused AdamW has its step counters on the device.
    trainer = make_trainer(token_folder, tmp_path / "out")
    with Prefetcher(trainer.train_loader.batch, 0, torch.device("cpu")) as trainer.micro_batches, NoWaiting():
        loss, _ = trainer.step()
        with pytest.raises(AssertionError, match="waited"):
            loss.item()  # shows that the check works


class TurnsNaN(Llama):
    """Has a finite loss for seven steps, then NaN."""

    calls = 0

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, loss = super().forward(tokens, targets)
        self.calls += 1
        return logits, loss * math.nan if self.calls > 7 and loss is not None else loss


def test_a_diverged_run_stops_and_saves_only_finite_weights(token_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TurnsNaN(VOCAB_SIZE, 16, n_layer=1, n_head=2, n_kv_head=None, d_model=16, d_ff=32)
    changes = {"eval_interval": 100, "checkpoint_interval": 1, "gradient_accumulation_steps": 1}
    with pytest.raises(DivergedError, match="step 8"):
        make_trainer(token_folder, tmp_path / "out", model=model, max_steps=20, log_interval=100, **changes).fit()
    latest = CheckpointFolder(tmp_path / "out" / "checkpoints").load_latest()
    assert latest is not None
    assert latest.state["train"]["step"] == 7
    assert all(tensor.isfinite().all() for tensor in latest.tensors["model"].values())


class TurnsGradientsNaN(Llama):
    """Has a finite loss with a NaN gradient from the third step on."""

    calls = 0

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, loss = super().forward(tokens, targets)
        self.calls += 1
        if self.calls > 2 and loss is not None:
            loss = loss + (self.norm.weight - self.norm.weight.detach()).abs().sum().sqrt()  # sqrt has no slope at 0
        return logits, loss


def test_a_nan_gradient_stops_the_run_before_weights_are_saved(token_folder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = TurnsGradientsNaN(VOCAB_SIZE, 16, n_layer=1, n_head=2, n_kv_head=None, d_model=16, d_ff=32)
    changes = {"eval_interval": 100, "checkpoint_interval": 1, "gradient_accumulation_steps": 1, "log_interval": 100}
    with pytest.raises(DivergedError, match="the gradient norm of step 3 is nan"):
        make_trainer(token_folder, tmp_path / "out", model=model, max_steps=20, **changes).fit()
    assert CheckpointFolder(tmp_path / "out" / "checkpoints").steps() == [1, 2]


def test_the_best_model_is_saved_as_soon_as_it_is_found(token_folder: Path, tmp_path: Path) -> None:
    # The learning rate becomes too large, so that the best evaluation is not at a step that is saved anyway.
    schedule = partial(lambda step, rates: rates[step], rates=[1e-2] * 3 + [1.0] * 9)
    changes = {"max_steps": 12, "eval_interval": 3, "checkpoint_interval": 4, "keep_checkpoints": 1}
    trainer = make_trainer(token_folder, tmp_path / "out", schedule=schedule, **changes)
    trainer.fit()
    assert trainer.state.best_step == 3
    assert trainer.saver.folder.steps() == [3, 12]
    assert (trainer.saver.folder.path / "best").resolve() == trainer.saver.folder.at(3)


@pytest.fixture
def _fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.slow
@NEEDS_A_COMPILER
@pytest.mark.usefixtures("_fresh_compiler")
def test_a_compiled_run_trains_the_same_and_saves_plain_names(token_folder: Path, tmp_path: Path) -> None:
    eager = make_trainer(token_folder, tmp_path / "eager", model=tiny_llama().double())
    eager.fit()
    system = System(device="cpu", compile=True)
    compiled = make_trainer(token_folder, tmp_path / "compiled", model=tiny_llama().double(), system=system)
    assert compiled.forward is not compiled.model
    compiled.fit()
    for one, other in zip(weights(eager), weights(compiled), strict=True):
        torch.testing.assert_close(one, other, **CLOSE_AFTER_ADAMW)
    latest = CheckpointFolder(tmp_path / "compiled" / "checkpoints").load_latest()
    assert latest is not None
    assert latest.tensors["model"].keys() == eager.model.state_dict().keys()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_on_cuda_steps_do_not_synchronise_and_resume_bit_for_bit(
    token_folder: Path, tmp_path: Path, dtype: Any
) -> None:
    def trainer(name: str, max_steps: int) -> Trainer:
        system = System(device="cuda", dtype=dtype, compile=False)
        model = tiny_llama(dropout=0.2).cuda()
        return make_trainer(token_folder, tmp_path / name, model=model, system=system, max_steps=max_steps)

    never = trainer("never", 8)
    with Prefetcher(never.train_loader.batch, 0, never.system.device) as never.micro_batches:
        state = never.snapshot.take(never.state)
        torch.cuda.set_sync_debug_mode("error")
        try:
            loss, _ = never.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert loss.isfinite()
    assert state.tensors["rng-0"]["cuda"].numel()

    never = trainer("never", 8)
    never.fit()
    trainer("stopped", 4).fit()
    resumed = trainer("stopped", 8)
    resumed.fit()
    assert_same_bits(weights(never), weights(resumed))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_training_agrees_with_the_cpu(token_folder: Path, tmp_path: Path) -> None:
    exact, errors = exact_losses(token_folder, tmp_path / "exact")
    system = System(device="cuda", dtype="float32", compile=True, tf32=False)
    on_cuda = make_trainer(token_folder, tmp_path / "cuda", model=tiny_llama().cuda(), system=system)
    on_cuda.fit()
    lines = read_metrics(tmp_path / "cuda" / "metrics.jsonl")
    for line, loss, error in zip(lines, exact, errors, strict=True):
        assert line["train/loss"] == pytest.approx(loss, abs=error)
