"""Evaluation with a running mean of the weights, or with those of a schedule-free optimizer, changes no training."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.command_line import Cli
from support.tiny_trainer import assert_same_bits, make_trainer, timeless_metrics, tiny_llama, weights
from support.tokens import TINY, write_tokens
from torch import nn

from lmtrain.checkpoint.files import Checkpoint, load_checkpoint
from lmtrain.checkpoint.fork import ForkOrigin, begin_fork
from lmtrain.files.limited import read_json
from lmtrain.loop.evaluation import evaluate
from lmtrain.loop.evaluation_weights import EMA, OF_OPTIMIZER, RunningMean, evaluation_weights, load_weights_to_use
from lmtrain.optimizer.adamw import adamw
from lmtrain.optimizer.schedule_free import schedule_free
from lmtrain.trainer import Trainer


def free(model: nn.Module) -> torch.optim.Optimizer:
    return schedule_free(model.named_parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


def averaging_trainer(folder: Path, out: Path, kind: str | None, **changes: Any) -> Trainer:
    """Return a trainer with a running mean (`ema`), a schedule-free optimizer (`evaluation`), or neither."""
    model = tiny_llama(dropout=0.1)
    optimizer = free(model) if kind == OF_OPTIMIZER else None
    return make_trainer(
        folder, out, model=model, optimizer=optimizer, ema_decay=0.8 if kind == EMA else None, **changes
    )


def test_the_running_mean_matches_its_formula_and_ignores_bad_steps():
    layer = nn.Linear(3, 2).double()
    mean = RunningMean(dict(layer.named_parameters()), decay=0.3)
    expected = {name: param.detach().numpy().copy() for name, param in layer.named_parameters()}
    for step in range(1, 8):
        bad = step in (2, 5)
        with torch.no_grad():
            for param in layer.parameters():
                param += torch.randn_like(param)
        mean.after_update(step, torch.tensor(bad))
        kept = min(0.3, (1 + step) / (10 + step))
        for name, param in layer.named_parameters():
            if not bad:
                expected[name] = kept * expected[name] + (1 - kept) * param.detach().numpy()
            np.testing.assert_allclose(mean.values()[name].numpy(), expected[name], rtol=1e-12)


@pytest.mark.parametrize("kind", [EMA, OF_OPTIMIZER])
def test_the_logged_loss_is_that_of_the_saved_weights(kind: str, token_folder: Path, tmp_path: Path) -> None:
    trainer = averaging_trainer(token_folder, tmp_path / "run", kind, eval_interval=8)
    trainer.fit()
    checkpoint = load_checkpoint(tmp_path / "run" / "checkpoints" / "step-00000008")
    assert {kind, "model"} < checkpoint.tensors.keys()
    used, trained = tiny_llama(), tiny_llama()
    load_weights_to_use(used, checkpoint.tensors)
    trained.load_state_dict(checkpoint.tensors["model"])
    loader, system = trainer.evaluator.val_loader, trainer.system
    losses = [evaluate(model, model, loader.whole_split(), system) for model in (used, trained)]
    assert losses[0] == timeless_metrics(tmp_path / "run")[-1]["val/loss"]
    assert losses[0] != losses[1]


def test_a_running_mean_changes_no_bit_of_the_training(token_folder: Path, tmp_path: Path) -> None:
    runs = []
    for kind in (None, EMA):
        trainer = averaging_trainer(token_folder, tmp_path / str(kind), kind, eval_interval=2)
        trainer.fit()
        runs.append(weights(trainer))
    assert_same_bits(*runs)


def test_evaluating_and_saving_changes_no_bit_of_a_schedule_free_run(token_folder: Path, tmp_path: Path) -> None:
    runs = []
    for interval in (1, 8):
        out = tmp_path / str(interval)
        trainer = averaging_trainer(
            token_folder, out, OF_OPTIMIZER, eval_interval=interval, checkpoint_interval=interval
        )
        trainer.fit()
        runs.append(weights(trainer))
    assert_same_bits(*runs)


@pytest.mark.parametrize("kind", [EMA, OF_OPTIMIZER])
def test_a_resumed_run_has_the_same_bits(kind: str, token_folder: Path, tmp_path: Path) -> None:
    never = averaging_trainer(token_folder, tmp_path / "never", kind)
    never.fit()
    averaging_trainer(token_folder, tmp_path / "stopped", kind, max_steps=4).fit()
    torch.manual_seed(99)  # as in another process
    resumed = averaging_trainer(token_folder, tmp_path / "stopped", kind)
    assert resumed.state.step == 4
    resumed.fit()
    assert_same_bits(weights(never), weights(resumed))
    values = [trainer.evaluation_weights.values() for trainer in (never, resumed)]
    assert_same_bits(*([each[name] for name in values[0]] for each in values))
    assert timeless_metrics(tmp_path / "never") == timeless_metrics(tmp_path / "stopped")


@pytest.mark.parametrize("kind", [EMA, OF_OPTIMIZER])
def test_an_interrupted_evaluation_leaves_the_weights_of_training(
    kind: str, token_folder: Path, tmp_path: Path
) -> None:
    trainer = averaging_trainer(token_folder, tmp_path / "run", kind, max_steps=4)
    trainer.fit()
    before = weights(trainer)

    def interrupted() -> None:
        with trainer.evaluation_weights.in_use():
            assert not all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert_same_bits(before, weights(trainer))


def origin_of(run: Path) -> ForkOrigin:
    checkpoint = load_checkpoint(run / "checkpoints" / "step-00000004")
    names = {EMA: "adamw", OF_OPTIMIZER: "schedule_free"}
    kind = EMA if EMA in checkpoint.tensors else OF_OPTIMIZER
    config = {"seed": 0, "data": {}, "optimizer": {"_target_": names[kind]}}
    return ForkOrigin(run, Checkpoint(checkpoint.tensors, {**checkpoint.state, "config": config}), None)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [EMA, OF_OPTIMIZER])
def test_a_fork_with_adamw_begins_with_the_weights_to_use_of_a_schedule_free_run(
    kind: str, token_folder: Path, tmp_path: Path
) -> None:
    averaging_trainer(token_folder, tmp_path / "origin", kind, max_steps=4).fit()
    origin = origin_of(tmp_path / "origin")
    fork = averaging_trainer(token_folder, tmp_path / "fork", EMA)
    fork.snapshot.identity = {"config": {"seed": 0, "data": {}, "optimizer": {"_target_": "adamw"}}}
    begin_fork(fork.snapshot, origin, fork.state, 4)
    tensors = origin.checkpoint.tensors
    begun = tensors[OF_OPTIMIZER] if kind == OF_OPTIMIZER else tensors["model"]
    mean = tensors[EMA] if kind == EMA else begun  # it begins with the weights, if the origin has none
    for name, param in fork.model.named_parameters():
        assert torch.equal(param, begun[name])
        assert torch.equal(fork.evaluation_weights.values()[name], mean[name])


def test_weights_of_another_model_are_refused():
    model = tiny_llama()
    tensors = {"model": model.state_dict(), EMA: {"strange": torch.ones(1)}}
    with pytest.raises(RuntimeError, match="weights for evaluation of strange, which the model does not have"):
        load_weights_to_use(model, tensors)


def test_a_running_mean_beside_a_schedule_free_optimizer_is_refused():
    model = tiny_llama()
    with pytest.raises(ValueError, match=r"trainer\.ema_decay=0\.9: this optimizer already averages the weights"):
        evaluation_weights(dict(model.named_parameters()), free(model), 0.9)
    assert evaluation_weights(dict(model.named_parameters()), adamw_of(model), None).values() == {}


def adamw_of(model: nn.Module) -> torch.optim.Optimizer:
    return adamw(model.named_parameters(), lr=1e-2, weight_decay=0.1, betas=(0.9, 0.95), eps=1e-8)


@pytest.mark.slow
@pytest.mark.parametrize(
    "choice", [["trainer.ema_decay=0.9"], ["optimizer=schedule_free", "scheduler=constant"]], ids=[EMA, OF_OPTIMIZER]
)
def test_evaluate_computes_the_loss_that_the_run_logged(choice: list[str], cli: Cli) -> None:
    data = write_tokens(cli.folder / "data")
    done = cli(*TINY, *choice, f"data.path={data}", "trainer.eval_batches=null", "hydra.run.dir=run")
    assert done.returncode == 0, done.stdout + done.stderr
    logged = read_json(cli.folder / "run" / "result.json")["best_val_loss"]
    done = cli("evaluate", "run", "--checkpoint", "best")
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{logged:.4f}" in done.stdout
