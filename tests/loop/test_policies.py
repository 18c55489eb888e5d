"""Policies for bad steps, on data with poisoned blocks; stops and kills must not change the result."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.tiny_trainer import Prodigal, assert_same_bits, make_trainer, timeless_metrics, tiny_llama, weights
from support.tokens import VOCAB_SIZE, write_tokens
from torch import Tensor

from lmtrain.checkpoint.files import load_checkpoint
from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.data.loader import TokenLoader
from lmtrain.errors import DataError, DivergedError, InterruptedBySignal
from lmtrain.loop.policies import MAX_BAD_STEPS_IN_A_ROW
from lmtrain.loop.stop_request import StopRequest
from lmtrain.model.llama import Llama
from lmtrain.system import System
from lmtrain.verify.bit_comparison import UndisturbedRun

POISON = VOCAB_SIZE - 1
STEP_SAMPLES = 8  # two micro-batches of four


class Poisoned(Llama):
    """Multiplies the loss by `harm` (NaN, or a large number) if a sequence of the micro-batch is all POISON."""

    harm = math.nan

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits, loss = super().forward(tokens, targets)
        if loss is not None and self.training and bool((tokens == POISON).all(dim=1).any()):
            loss = loss * self.harm
        return logits, loss


def poisoned(harm: float = math.nan) -> Poisoned:
    torch.manual_seed(0)
    model = Poisoned(VOCAB_SIZE, 16, n_layer=2, n_head=4, n_kv_head=2, d_model=32, d_ff=64, dropout=0.1)
    model.harm = harm
    return model


@pytest.fixture
def poisoned_folder(token_folder: Path) -> Path:
    """Return data whose sequential samples 34 (in step 5) and 75 (in step 10) of 16 tokens each are poison."""
    return poison(token_folder)


def poison(folder: Path) -> Path:
    tokens = np.fromfile(folder / "train.bin", "<u2")
    for sample in (34, 75):
        tokens[16 * sample : 16 * sample + 17] = POISON
    tokens.tofile(folder / "train.bin")
    return folder


def trainer(folder: Path, out: Path, policy: str, **changes: Any) -> Any:
    changes = {"model": poisoned(), "max_steps": 14, "order": "sequential", "on_bad_step": policy, **changes}
    return make_trainer(folder, out, **changes)


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_step_changes_nothing(poisoned_folder: Path, tmp_path: Path, fused: bool) -> None:
    unchanged: dict[int, bool] = {}
    model = poisoned()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=fused)
    made = trainer(poisoned_folder, tmp_path / "out", "skip", model=model, optimizer=optimizer)
    one_step = made.step

    def step() -> Any:
        before = weights(made), [state["exp_avg"].clone() for state in optimizer.state.values()]
        outcome = one_step()
        same = all(torch.equal(a, b) for a, b in zip(before[0], weights(made), strict=True))
        moments = [state["exp_avg"] for state in optimizer.state.values()]
        unchanged[made.state.step] = same
        if same and before[1]:
            assert_same_bits(before[1], moments)
        return outcome

    made.step = step
    made.fit()
    assert [step for step, same in unchanged.items() if same] == [5, 10]
    assert made.state.bad_steps == 2
    assert {float(state["step"]) for state in optimizer.state.values()} == {12.0}  # AdamW's own count
    lines = {int(line["step"]): line for line in timeless_metrics(tmp_path / "out")}
    assert math.isnan(lines[5]["train/loss"])
    assert lines[4].get("bad_steps") is None
    assert [lines[step]["bad_steps"] for step in (5, 9, 10, 14)] == [1, 1, 2, 2]
    assert all(param.isfinite().all() for param in model.parameters())


def test_stop_is_the_default_and_keeps_the_batch(poisoned_folder: Path, tmp_path: Path) -> None:
    made = trainer(
        poisoned_folder, tmp_path / "out", "stop", log_interval=100, checkpoint_interval=3, eval_interval=100
    )
    made.bad_batches.decode = lambda ids: " ".join(map(str, ids))
    with pytest.raises(DivergedError, match=r"the loss of step 5 is nan; its update was skipped, and its batch is in"):
        made.fit()
    (kept,) = (tmp_path / "out" / "bad-batches").iterdir()
    assert kept.name == "step-00000005-sample-000000000032.json"
    content = json.loads(kept.read_text(), parse_constant=pytest.fail)
    assert content["reason"] == "the loss of step 5 is nan"
    first, second = content["micro_batches"]
    assert first["loss"] == "nan"
    assert math.isfinite(second["loss"])
    samples = [*first["samples"], *second["samples"]]
    assert [sample["sample"] for sample in samples] == list(range(32, 40))
    tokens = np.fromfile(poisoned_folder / "train.bin", "<u2").tolist()
    for sample in samples:
        assert sample["file"] == str(poisoned_folder / "train.bin")
        assert sample["ids"] == tokens[sample["token"] : sample["token"] + 17]
        assert sample["text"] == " ".join(map(str, sample["ids"]))
    assert set(samples[2]["ids"]) == {POISON}
    assert CheckpointFolder(tmp_path / "out" / "checkpoints").steps() == [3]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_a_spike_is_skipped_like_a_nan(poisoned_folder: Path, tmp_path: Path, dtype: Any) -> None:
    # The poison comes only after the window is full.
    changes = {"spike_zscore": 30.0, "spike_window": 4, "system": System(device="cpu", dtype=dtype)}
    made = trainer(poisoned_folder, tmp_path / "out", "skip", model=poisoned(harm=40.0), **changes)
    made.fit()
    bad = [json.loads(path.read_text()) for path in sorted((tmp_path / "out" / "bad-batches").iterdir())]
    assert [content["step"] for content in bad] == [5, 10]
    assert all("robust standard deviations too high" in content["reason"] for content in bad)


def test_a_rewind_continues_from_the_last_regular_checkpoint_without_the_bad_data(
    poisoned_folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    made = trainer(poisoned_folder, out, "rewind", checkpoint_interval=3, eval_interval=4, keep_checkpoints=1)
    made.fit()
    # Step 5 is bad: back to step 3, continuing with sample 40. Then step 8 (samples 72 to 79) has sample 75: back to
    # step 6, continuing with sample 80.
    assert made.state.step == 14
    assert made.state.bad_steps == 2
    assert made.state.samples == 14 * STEP_SAMPLES + (5 - 3) * STEP_SAMPLES + (8 - 6) * STEP_SAMPLES
    lines = timeless_metrics(out)
    assert [line["step"] for line in lines] == list(range(1, 15))
    assert all(math.isfinite(line["train/loss"]) for line in lines)

    # The same steps by hand, on the remaining samples.
    by_hand = trainer(poisoned_folder, tmp_path / "by-hand", "stop", checkpoint_interval=100, eval_interval=4)
    starts = [*range(0, 24, 8), *range(40, 64, 8), *range(80, 144, 8)]
    whole = TokenLoader(str(poisoned_folder), "train", 4, 16, seed=5, order="sequential")
    indices = [start // 4 + micro_step for start in starts for micro_step in (0, 1)]
    by_hand.train_loader.batch = lambda index: whole.batch(indices[index] if index < len(indices) else 0)
    by_hand.fit()
    assert_same_bits(weights(made), weights(by_hand))
    without_bad_steps = [{key: value for key, value in line.items() if key != "bad_steps"} for line in lines]
    assert without_bad_steps == timeless_metrics(tmp_path / "by-hand")


def test_a_rewind_works_after_the_batch_size_was_changed(token_folder: Path, tmp_path: Path) -> None:
    """The run continues after the bad step, where a batch begins, although the checkpoint is inside a batch."""
    tokens = np.fromfile(token_folder / "train.bin", "<u2")
    tokens[16 * 14 : 16 * 14 + 17] = POISON
    tokens.tofile(token_folder / "train.bin")

    def trainer(max_steps: int, batch_size: int, accumulation: int) -> Any:
        return make_trainer(
            token_folder,
            tmp_path / "out",
            model=poisoned(),
            order="sequential",
            on_bad_step="rewind",
            checkpoint_interval=2,
            max_steps=max_steps,
            batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
        )

    trainer(3, 4, 1).fit()
    resumed = trainer(6, 3, 2)
    resumed.fit()  # step 4 is bad; after step 2, 8 samples were seen
    assert (resumed.state.step, resumed.state.samples, resumed.state.bad_steps) == (6, 18 + 4 * 6, 1)


def test_a_model_that_stays_bad_is_not_rewound_forever(poisoned_folder: Path, tmp_path: Path) -> None:
    tokens = np.full(4000, POISON, "<u2")
    tokens[: 16 * 8 * 4] = 1  # good data up to step 4
    tokens.tofile(poisoned_folder / "train.bin")
    made = trainer(poisoned_folder, tmp_path / "out", "rewind", checkpoint_interval=3)
    with pytest.raises(DivergedError, match="3 rewinds did not help"):
        made.fit()
    made = trainer(poisoned_folder, tmp_path / "none", "rewind", checkpoint_interval=100, eval_interval=100)
    with pytest.raises(DivergedError, match="no checkpoint to go back to"):
        made.fit()


@pytest.mark.parametrize("at_rewind", [1, 3])
def test_rewinds_before_a_stop_still_count_after_a_resume(token_folder: Path, tmp_path: Path, at_rewind: int) -> None:
    tokens = np.fromfile(token_folder / "train.bin", "<u2")
    for step in (5, 7, 9, 11):  # every second step after step 3, the last regular checkpoint
        tokens[16 * 8 * (step - 1) : 16 * 8 * (step - 1) + 17] = POISON
    tokens.tofile(token_folder / "train.bin")
    changes = {"checkpoint_interval": 3, "eval_interval": 100}
    with StopRequest() as stop:
        stopped = trainer(token_folder, tmp_path / "out", "rewind", stop=stop, **changes)
        one_step = stopped.step

        def step() -> Any:
            if (stopped.state.step, stopped.state.bad_steps) == (3, at_rewind):
                os.kill(os.getpid(), signal.SIGTERM)
            return one_step()

        stopped.step = step
        with pytest.raises(InterruptedBySignal):
            stopped.fit()
    assert (stopped.state.step, stopped.state.bad_steps) == (4, at_rewind)
    resumed = trainer(token_folder, tmp_path / "out", "rewind", **changes)
    with pytest.raises(DivergedError, match="3 rewinds did not help"):
        resumed.fit()
    assert resumed.state.bad_steps == 4


def test_steps_that_a_rewind_will_remove_do_not_differ_from_an_undisturbed_run(
    poisoned_folder: Path, tmp_path: Path
) -> None:
    changes = {"checkpoint_interval": 3, "eval_interval": 2, "eval_batches": 1, "max_steps": 6}
    trainer(poisoned_folder, tmp_path / "undisturbed", "rewind", keep_checkpoints=100, **changes).fit()
    undisturbed = UndisturbedRun(tmp_path / "undisturbed")
    run = tmp_path / "run"
    made = trainer(poisoned_folder, run, "rewind", **changes)
    one_step = made.step
    steps = []

    def step() -> Any:  # a kill may happen before any step
        made.saver.wait()
        steps.append(made.state.step)
        assert undisturbed.differences(run, completed=False) == []
        return one_step()

    made.step = step
    made.fit()
    assert [step for step in steps if steps.count(step) > 1] == [3, 4, 3, 4]
    assert undisturbed.differences(run, completed=True) == []
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    lines[3] = lines[3].replace('"bad_steps": 1', '"bad_steps": 0')
    (run / "metrics.jsonl").write_text("\n".join(lines), encoding="utf-8")
    assert [str(found) for found in undisturbed.differences(run, completed=True)] == [
        "step 4, metrics.jsonl: bad_steps: 1 → 0"
    ]


TO_BE_STOPPED = {"checkpoint_interval": 3, "eval_interval": 4, "keep_checkpoints": 1, "spike_zscore": 50.0}


@pytest.fixture(scope="module", params=["skip", "rewind"])
def never_stopped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a policy, a trainer that has finished with it, and the folder with its data and its run `never`."""
    folder = tmp_path_factory.mktemp(request.param)
    never = trainer(poison(write_tokens(folder / "data")), folder / "never", request.param, **TO_BE_STOPPED)
    never.fit()
    return request.param, never, folder


@pytest.mark.slow
@pytest.mark.parametrize("at_step", [1, 4, 5, 6, 7, 8, 9])
def test_the_step_at_which_a_run_is_stopped_does_not_change_its_result(
    never_stopped: Any, tmp_path: Path, at_step: int
) -> None:
    policy, never, folder = never_stopped
    with StopRequest() as stop:
        stopped = trainer(folder / "data", tmp_path / "stopped", policy, stop=stop, **TO_BE_STOPPED)
        one_step = stopped.step

        def step() -> Any:
            if stopped.state.step == at_step:
                os.kill(os.getpid(), signal.SIGTERM)
            return one_step()

        stopped.step = step
        with pytest.raises(InterruptedBySignal):
            stopped.fit()
    saved = CheckpointFolder(tmp_path / "stopped" / "checkpoints").steps()[-1]
    assert saved in (at_step + 1, at_step, 3, 6)  # the last two: after a rewind
    resumed = trainer(folder / "data", tmp_path / "stopped", policy, **TO_BE_STOPPED)
    resumed.fit()
    assert_same_bits(weights(never), weights(resumed))
    assert timeless_metrics(folder / "never") == timeless_metrics(tmp_path / "stopped")
    assert never.state.samples == resumed.state.samples
    assert torch.equal(never.detector.window.nan_to_num(-1), resumed.detector.window.nan_to_num(-1))


class StopsInEvaluation(TokenLoader):
    """Calls `cause`, which raises or sends a signal, in the second batch of an evaluation."""

    def __init__(self, *arguments: Any, cause: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.cause = cause

    def whole_split(self) -> Any:
        for number, batch in enumerate(super().whole_split()):
            if number == 1:
                self.cause()
            yield batch


@pytest.mark.parametrize("at_evaluation", [1, 2, 3])
@pytest.mark.parametrize("cause", ["signal", "no memory"])
def test_an_interrupted_evaluation_loses_nothing(
    token_folder: Path, tmp_path: Path, at_evaluation: int, cause: str
) -> None:
    changes: dict[str, Any] = {"max_steps": 12, "checkpoint_interval": 5, "log_interval": 3, "eval_interval": 4}
    never = make_trainer(token_folder, tmp_path / "never", model=tiny_llama(dropout=0.2), **changes)
    never.fit()
    evaluations = 0

    def harm() -> None:
        nonlocal evaluations
        evaluations += 1
        if evaluations == at_evaluation:
            if cause == "signal":
                os.kill(os.getpid(), signal.SIGUSR1)
                pytest.fail("the evaluation continued after the signal")
            torch.empty(1 << 60)  # raises the real error of an impossible allocation

    with StopRequest() as stop:
        stopped = make_trainer(token_folder, tmp_path / "out", model=tiny_llama(dropout=0.2), stop=stop, **changes)
        stopped.evaluator.val_loader = StopsInEvaluation(str(token_folder), "val", 4, 16, seed=5, cause=harm)
        with pytest.raises(InterruptedBySignal if cause == "signal" else RuntimeError):
            stopped.fit()
    assert stopped.state.step == 4 * at_evaluation
    saved = load_checkpoint(tmp_path / "out" / "checkpoints" / f"step-{4 * at_evaluation:08d}")
    assert saved.state["train"]["pending"] is not None
    torch.manual_seed(99)
    resumed = make_trainer(token_folder, tmp_path / "out", model=tiny_llama(dropout=0.2), **changes)
    resumed.fit()
    assert resumed.state.pending is None
    assert_same_bits(weights(never), weights(resumed))
    assert timeless_metrics(tmp_path / "never") == timeless_metrics(tmp_path / "out")
    assert (never.state.best_step, never.state.best_val_loss) == (resumed.state.best_step, resumed.state.best_val_loss)
    # Another resume has nothing left to do and repeats no line.
    make_trainer(token_folder, tmp_path / "out", model=tiny_llama(dropout=0.2), **changes).fit()
    assert timeless_metrics(tmp_path / "never") == timeless_metrics(tmp_path / "out")


def test_a_bad_step_is_handled_before_damaged_data_stop_the_run(poisoned_folder: Path, tmp_path: Path) -> None:
    for policy, error in (("stop", DivergedError), ("skip", DataError)):
        out = tmp_path / policy
        changes = {"log_interval": 100, "eval_interval": 100, "checkpoint_interval": 100}
        made = trainer(poisoned_folder, out, policy, **changes)
        whole = made.train_loader.batch

        def batch(index: int, whole: Any = whole) -> Any:
            if index == 10:  # the first of step 6: step 5 was bad and has not been checked yet
                raise DataError("damaged")
            return whole(index)

        made.train_loader.batch = batch
        with pytest.raises(error):
            made.fit()
        assert len(list((out / "bad-batches").iterdir())) == 1
        saved = CheckpointFolder(out / "checkpoints").load_latest()
        assert (saved and saved.state["train"]["bad_steps"]) == (1 if policy == "skip" else None)


def test_too_many_bad_steps_in_a_row_stop_a_run_that_skips_them(poisoned_folder: Path, tmp_path: Path) -> None:
    np.full(4000, POISON, "<u2").tofile(poisoned_folder / "train.bin")
    made = trainer(poisoned_folder, tmp_path / "out", "skip", max_steps=100, eval_interval=100)
    with pytest.raises(DivergedError, match=f"the {MAX_BAD_STEPS_IN_A_ROW} steps before it were also bad"):
        made.fit()
    assert made.state.bad_steps == MAX_BAD_STEPS_IN_A_ROW + 1


def test_a_rewind_restores_group_values_that_the_optimizer_changes(poisoned_folder: Path, tmp_path: Path) -> None:
    model = poisoned()
    optimizer = Prodigal(model.parameters(), lr=1.0)
    changes = {"checkpoint_interval": 3, "eval_interval": 100}
    made = trainer(poisoned_folder, tmp_path / "out", "rewind", model=model, optimizer=optimizer, **changes)
    made.fit()
    assert made.state.bad_steps == 2
    assert optimizer.param_groups[0]["k"] == 14  # bad steps were skipped, and repeated steps count once


def test_the_best_model_is_still_there_after_a_rewind(poisoned_folder: Path, tmp_path: Path) -> None:
    # Best at 2, regular at 3, better at 4, bad at 5.
    changes = {"checkpoint_interval": 3, "eval_interval": 2, "keep_checkpoints": 1, "max_steps": 5}
    made = trainer(poisoned_folder, tmp_path / "out", "rewind", **changes)
    seen = []
    rewind = made.logger.rewind

    def note(step: int) -> None:
        seen.append((step, made.state.best_step, made.saver.folder.steps()))
        rewind(step)

    made.logger.rewind = note
    made.fit()
    assert seen == [(3, 2, [2, 3])]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("policy", ["skip", "rewind"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_on_cuda_bad_steps_are_skipped_and_saved_weights_are_exact(
    poisoned_folder: Path, tmp_path: Path, policy: str, dtype: Any
) -> None:
    def run(name: str, max_steps: int) -> Any:
        changes = {"checkpoint_interval": 3, "eval_interval": 4, "spike_zscore": 50.0, "max_steps": max_steps}
        changes |= {"system": System(device="cuda", dtype=dtype, compile=False), "model": poisoned().cuda()}
        made = trainer(poisoned_folder, tmp_path / name, policy, **changes)
        made.fit()
        return made

    never = run("never", 14)
    assert never.state.bad_steps == 2
    saved = load_checkpoint(never.saver.folder.at(14))
    for name, param in never.model.named_parameters():
        assert param.isfinite().all()
        assert torch.equal(saved.tensors["model"][name], param.detach().cpu())
    run("stopped", 9)
    resumed = run("stopped", 14)
    assert_same_bits(weights(never), weights(resumed))
