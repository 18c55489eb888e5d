"""litgpt's own pretraining, `litgpt.pretrain.main`: its model, its loop and its loss, compiled as it always is.

It differs from `litgpt pretrain` in three arguments: the data (the contest's tokens), a logger that takes turns, and
AdamW, which is fused on a CPU, too, where litgpt takes the slower one by default.
"""

from pathlib import Path

import lightning as L
import numpy as np
import torch
from lightning.fabric.loggers import Logger
from litgpt import GPT, Config
from litgpt.args import EvalArgs, TrainArgs
from litgpt.data import DataModule
from litgpt.pretrain import main
from torch.utils.data import DataLoader, Dataset
from turns import Turns, read_task

FOREVER = 10**9


class FusedAdamW(torch.optim.AdamW):
    """AdamW without the argument `fused`, which litgpt would set to false on a CPU."""

    def __init__(self, params, lr: float, betas: list[float], weight_decay: float) -> None:
        super().__init__(params, lr=lr, betas=tuple(betas), weight_decay=weight_decay, fused=True)


class Blocks(Dataset):
    """Consecutive blocks of tokens, each with the token after it."""

    def __init__(self, task) -> None:
        self.tokens, self.task = np.memmap(task.tokens, dtype=np.uint16, mode="r"), task

    def __len__(self) -> int:
        return self.task.blocks

    def __getitem__(self, i: int) -> torch.Tensor:
        start = i * self.task.block_size
        return torch.from_numpy(self.tokens[start : start + self.task.block_size + 1].astype(np.int64))


class Data(DataModule):
    def __init__(self, task) -> None:
        super().__init__()
        self.task = task

    def connect(self, tokenizer=None, batch_size=1, max_seq_length=None) -> None:
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader:
        return DataLoader(Blocks(self.task), batch_size=self.batch_size, pin_memory=True)

    val_dataloader = train_dataloader


class TurnsLogger(Logger):
    """Reports litgpt's own logs to the contest."""

    name, version = "turns", None

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.turns.report(metrics["step"], [metrics["loss"]])

    def log_hyperparams(self, *args, **kwargs) -> None:
        pass


def model_config(task) -> Config:
    """Return litgpt's settings for the contest's model. It has no learned positions: its GPT-2 has rotary ones."""
    size = task.model
    llama = size["kind"] == "llama"
    return Config(
        name="peers",
        block_size=task.block_size,
        vocab_size=size["vocab_size"],
        padded_vocab_size=size["vocab_size"],
        n_layer=size["n_layer"],
        n_head=size["n_head"],
        n_embd=size["d_model"],
        intermediate_size=size["d_ff"] if llama else 4 * size["d_model"],
        norm_class_name="RMSNorm" if llama else "LayerNorm",
        norm_eps=size["norm_eps"] if llama else 1e-5,
        mlp_class_name="LLaMAMLP" if llama else "GptNeoxMLP",
        gelu_approximate="tanh" if size.get("gelu") == "tanh" else "none",
        rotary_percentage=1.0,
        rope_base=int(size.get("rope_base", 10000)),
        parallel_residual=False,
        bias=size.get("bias", False),
    )


def save_weights(task, shapes: dict[str, torch.Size], folder: Path) -> None:
    """Write the contest's initial weights as a checkpoint of litgpt. LayerNorm always has biases there: zeros."""
    names = {
        ".embedding.": "transformer.wte.",
        ".layers.": "transformer.h.",
        ".norm.": "transformer.ln_f.",
        "attention_norm.": "norm_1.",
        "mlp_norm.": "norm_2.",
        "attention.o.": "attn.proj.",
        "attention.": "attn.",
        "mlp.gate.": "mlp.fc_1.",
        "mlp.up.": "mlp.fc_2." if task.model["kind"] == "llama" else "mlp.fc.",
        "mlp.down.": "mlp.proj.",
    }
    weights = {}
    for name, value in torch.load(task.weights, mmap=True).items():
        name = f".{name}"
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        weights[name] = value
    for name in [name for name in weights if ".attn.q." in name]:
        parts = [weights.pop(name.replace(".q.", f".{part}.")) for part in "qkv"]
        weights[name.replace(".q.", ".qkv.")] = torch.cat(parts)
    weights["lm_head.weight"] = weights["transformer.wte.weight"]
    state = {name: weights.get(name, torch.zeros(shape)) for name, shape in shapes.items()}
    zeros, unused = state.keys() - weights, weights.keys() - state
    assert all(name.endswith("bias") for name in zeros), zeros
    assert unused <= {".positions.weight"}, unused
    torch.save(state, folder / "lit_model.pth")


if __name__ == "__main__":
    task = read_task()
    config = model_config(task)
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in GPT(config).state_dict().items()}
    save_weights(task, shapes, Path(task.folder))
    turns = Turns(
        ("litgpt", "lightning"),
        parameters=sum(shape.numel() for name, shape in shapes.items() if name != "lm_head.weight"),  # tied
        dtype=task.dtype,
        compiled=True,
    )
    fabric = L.Fabric(
        accelerator="gpu" if task.device == "cuda" else "cpu",
        devices=1,
        precision="bf16-mixed" if task.dtype == "bfloat16" else "32-true",
        loggers=[TurnsLogger(turns)],
    )
    if task.device == "cuda":
        torch.set_float32_matmul_precision("high")  # as `litgpt.__main__` does
    main(
        fabric=fabric,
        devices=1,
        seed=1,
        initial_checkpoint_dir=Path(task.folder),
        resume=False,
        config=config,
        data=Data(task),
        out_dir=Path(task.folder) / "out",
        tokenizer_dir=None,
        tokenizer=None,
        train=TrainArgs(
            save_interval=None,
            log_interval=task.log_interval,
            global_batch_size=task.batch_size,
            micro_batch_size=task.batch_size,
            max_tokens=task.max_steps * task.batch_size * task.block_size,
            lr_warmup_steps=0,
            min_lr=task.lr,
            max_norm=task.grad_clip,
            tie_embeddings=True,
        ),
        eval=EvalArgs(interval=FOREVER, final_validation=False),
        optimizer={
            "class_path": "litgpt_pretrain.FusedAdamW",
            "init_args": {"lr": task.lr, "betas": task.betas, "weight_decay": task.weight_decay},
        },
    )
