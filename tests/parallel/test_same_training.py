"""A run of several processes is the same training as that of one: the same samples, losses, evaluations and state."""

import math
from pathlib import Path

import pytest
import torch
from support.command_line import Cli
from support.ranks import train_ranks
from support.tiny_trainer import timeless_metrics
from support.tokens import TINY, VOCAB_SIZE, write_tokens

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.files.limited import read_json
from lmtrain.files.metrics import read_metrics

# 24 sequences per step: 2 and 4 processes share its micro-batches as they are, 3 and 8 need smaller ones.
STEP = [*TINY, "data.batch_size=6", "trainer.gradient_accumulation_steps=4", "trainer.eval_batches=1",
        "trainer.eval_train_batches=1", "model.dropout=0.0"]  # fmt: skip
GPT2 = ["model=gpt2", "model.vocab_size=64", "model.n_layer=2", "model.n_head=2", "model.d_model=32",
        "model.dropout=0.0"]  # fmt: skip
WITHOUT_LLAMA = [text for text in STEP if not text.startswith("model")]
CASES = {
    "llama": STEP,
    "gpt2": [*WITHOUT_LLAMA, *GPT2],
    "experts": [*WITHOUT_LLAMA, "model=moe_1m", "model.n_layer=2", "model.n_head=2", "model.d_model=32",
                "model.d_ff=64", "model.mlp.bias_rate=0.01"],
    "masked": [*STEP, "model.mask_documents=true", "model.end_of_text=7"],
    "schedules": [*STEP, "trainer.batch_schedule=[[0,24],[1000,48]]", "trainer.length_schedule=[[0,8],[2000,16]]"],
    "schedule_free": [*STEP, "optimizer=schedule_free", "scheduler=constant"],
    **{name: [*STEP, f"optimizer={name}"] for name in ("muon", "normuon", "lion", "adafactor", "adamw8bit", "soap")},
    "few_matrices": [*STEP, "optimizer=muon", "model.n_layer=1"],  # fewer than processes
    "float16": [*STEP, "system.dtype=float16"],
    "library": [*STEP, "optimizer=library", "optimizer.name=adopt"],
    "compiled": [*STEP, "system.compile=true"],
    "average": [*STEP, "trainer.ema_decay=0.9"],
}  # fmt: skip
# After few steps SOAP's preconditioners have hardly any directions, and the basis of the rest depends on rounding.
LOOSE = {"soap": 1e-2, "float16": 1e-3}
HSDP = "fsdp parallel.shards=2 parallel.reshard_after_forward=false parallel.reduce_each_micro_batch=true"
WAYS = {  # of sharing the work, with their names in the log
    "ddp": "DDP",
    "fsdp": "FSDP",
    HSDP: "FSDP, 2 copies of the model",
}
SIZES = [
    ("llama", 2),
    ("llama", 3),
    ("llama", 4),
    ("llama", 8),
    ("few_matrices", 8),
    *((name, 2) for name in CASES if name not in ("llama", "few_matrices")),
]
TIMEOUT_S = 400  # compiling takes minutes on a busy machine
COMPARED = ("train/loss", "grad_norm", "val/loss", "val/bits_per_byte", "train_eval/loss", "tokens", "lr", "imbalance")


def metrics(run: Path) -> list[dict[str, float]]:
    return [
        {key: value for key, value in line.items() if key == "step" or key.endswith(COMPARED)}
        for line in read_metrics(run / "metrics.jsonl")
    ]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "size"), SIZES)
def test_losses_and_evaluations_agree_with_one_process(cli: Cli, tmp_path: Path, name: str, size: int) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    arguments = [*CASES[name], "data.path=data/tiny"]
    alone = cli(*arguments, "hydra.run.dir=alone", OMP_NUM_THREADS="1", timeout=TIMEOUT_S)
    assert alone.returncode == 0, alone.stderr
    for parallel, how in WAYS.items():
        options = [f"parallel={parallel.partition(' ')[0]}", *parallel.split()[1:]]
        if parallel == HSDP and size != 4:
            continue
        first, *others = train_ranks(cli, size, *arguments, *options, "hydra.run.dir=together", timeout_s=TIMEOUT_S)
        assert_same_training(tmp_path, name, size)
        assert f"{size} processes with {how}" in first.stdout
        assert [process.stdout for process in others] == [""] * (size - 1)
        assert name == "compiled" or not any(process.stderr for process in others)  # torch's compiler has its own log
        (tmp_path / "together").rename(tmp_path / f"with {parallel}")


def assert_same_training(folder: Path, name: str, size: int) -> None:
    """Check that the runs `alone` and `together` in a folder have the same metrics and the same last checkpoint."""
    one, several = metrics(folder / "alone"), metrics(folder / "together")
    assert [line.keys() for line in one] == [line.keys() for line in several]
    assert len(one) == 12
    for expected, line in zip(one, several, strict=True):
        for key, value in expected.items():
            assert line[key] == pytest.approx(value, rel=LOOSE.get(name, 1e-5)), (line["step"], key)
    checkpoints = [CheckpointFolder.of_run(folder / run).load_latest() for run in ("alone", "together")]
    then, now = (checkpoint for checkpoint in checkpoints if checkpoint is not None)
    assert {"samples", "tokens", "step"} <= now.state["train"].keys()
    for key in ("samples", "tokens", "step", "best_step"):
        assert now.state["train"][key] == then.state["train"][key]
    assert then.tensors.keys() <= now.tensors.keys()
    for file in then.tensors.keys() - {"rng-0"} if name not in LOOSE else ():
        assert then.tensors[file].keys() == now.tensors[file].keys()
        for tensor, value in then.tensors[file].items():
            torch.testing.assert_close(now.tensors[file][tensor], value, rtol=2e-3, atol=2e-4)
    assert {f"rng-{rank}" for rank in range(size)} <= now.tensors.keys()


@pytest.mark.slow
def test_in_one_process_all_have_the_same_bits(cli: Cli, tmp_path: Path) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    for choice in ("none", "ddp", "fsdp"):
        done = cli(*STEP, "data.path=data/tiny", f"parallel={choice}", f"hydra.run.dir={choice}")
        assert done.returncode == 0, done.stderr
    for choice in ("ddp", "fsdp"):
        assert timeless_metrics(tmp_path / choice) == timeless_metrics(tmp_path / "none")
        processes = read_json(tmp_path / choice / "environment.json")["processes"]
        assert processes == f"1 process with {choice.upper()}"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.slow
def test_nccl_in_one_process_trains_as_without(cli: Cli, tmp_path: Path) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    on_gpu = [text for text in STEP if not text.startswith("system.device")]
    for choice in ("none", "ddp", "fsdp"):
        done = cli(
            *on_gpu, "system.device=cuda", "data.path=data/tiny", f"parallel={choice}", f"hydra.run.dir={choice}"
        )
        assert done.returncode == 0, done.stderr
    for choice in ("ddp", "fsdp"):
        for expected, line in zip(metrics(tmp_path / "none"), metrics(tmp_path / choice), strict=True):
            assert line == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_a_batch_with_targets_in_one_process_only(cli: Cli, tmp_path: Path) -> None:
    """With documents masked, a micro-batch may have no targets at all; the mean is over the targets of all."""
    (tmp_path / "masked_loss.py").write_text(
        "import torch\n"
        "from lmtrain.data.loader import TokenLoader, IGNORE\n"
        "class Sparse(TokenLoader):\n"
        "    def batch(self, index):\n"
        "        x, y = super().batch(index)\n"
        "        first = index * self.batch_size\n"
        "        for row in range(len(y)):\n"
        "            if (first + row) % 24 >= 3:\n"
        "                y[row] = IGNORE\n"
        "        return x, y\n"
    )
    write_tokens(tmp_path / "data" / "tiny")
    arguments = [*STEP, "data.path=data/tiny", "data._target_=masked_loss.Sparse"]
    assert cli(*arguments, "hydra.run.dir=alone").returncode == 0
    one = metrics(tmp_path / "alone")
    assert one[-1]["tokens"] == 12 * 3 * 16
    for parallel in ("ddp", "fsdp"):
        train_ranks(cli, 4, *arguments, f"parallel={parallel}", f"hydra.run.dir={parallel}")
        for expected, line in zip(one, metrics(tmp_path / parallel), strict=True):
            assert line == pytest.approx(expected, rel=1e-5)


@pytest.mark.slow
def test_a_mixture_is_dealt_out_and_each_token_is_evaluated_once(cli: Cli, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tokens(tmp_path / "data" / name)
    whole = [text for text in STEP if not text.startswith("trainer.eval_batches")]
    arguments = [*whole, "data=mixture", "data.paths={a: data/a, b: data/b}", "data.weights={a: 2, b: 1}"]
    assert cli(*arguments, "hydra.run.dir=alone").returncode == 0
    train_ranks(cli, 3, *arguments, "hydra.run.dir=together")
    one, several = metrics(tmp_path / "alone"), metrics(tmp_path / "together")
    for expected, line in zip(one, several, strict=True):
        assert line == pytest.approx(expected, rel=1e-5)
    environment = read_json(tmp_path / "together" / "environment.json")
    assert environment["evaluation"]["val"]["tokens"] == 2 * 699
    assert environment["processes"] == "3 processes with DDP"
    assert several[0]["train/loss"] == pytest.approx(math.log(VOCAB_SIZE), abs=0.1)
