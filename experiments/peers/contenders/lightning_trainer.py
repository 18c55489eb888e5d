"""PyTorch Lightning's Trainer with the plain model, without its logger, checkpoints and progress bar."""

import lightning as L
import numpy as np
import torch
from plain_model import build_model
from torch.utils.data import DataLoader, Dataset
from turns import Turns, read_task

task = read_task()


class Blocks(Dataset):
    """Consecutive blocks of tokens, and their targets."""

    def __init__(self) -> None:
        self.tokens = np.memmap(task.tokens, dtype=np.uint16, mode="r")

    def __len__(self) -> int:
        return task.blocks

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        window = torch.from_numpy(self.tokens[i * task.block_size :][: task.block_size + 1].astype(np.int64))
        return window[:-1], window[1:]


class LanguageModel(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.model = build_model(task)
        if task.compile:
            self.model.compile()

    def training_step(self, batch: tuple[torch.Tensor, torch.Tensor], batch_index: int) -> torch.Tensor:
        _, loss = self.model(*batch)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.parameters() if p.ndim >= 2]
        others = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": decayed, "weight_decay": task.weight_decay}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=task.lr, betas=task.betas, fused=True)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None) -> None:
        # In mixed precision, Lightning refuses to clip for a fused optimizer, because of scalers that bfloat16 has not.
        torch.nn.utils.clip_grad_norm_(self.parameters(), gradient_clip_val)


class TakeTurns(L.Callback):
    """Reports to the contest at the steps at which a logger would log."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_index) -> None:
        if trainer.global_step == 1 or trainer.global_step % task.log_interval == 0:
            self.turns.report(trainer.global_step, [outputs["loss"].item()])


if task.device == "cuda":
    torch.set_float32_matmul_precision("high")  # as Lightning itself recommends
module = LanguageModel()
turns = Turns(
    ("lightning",),
    parameters=sum(p.numel() for p in module.parameters()),
    dtype=task.dtype,
    compiled=task.compile,
)
trainer = L.Trainer(
    accelerator="gpu" if task.device == "cuda" else "cpu",
    devices=1,
    precision="bf16-mixed" if task.dtype == "bfloat16" else "32-true",
    max_steps=task.max_steps,
    gradient_clip_val=task.grad_clip,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    default_root_dir=task.folder,
    callbacks=[TakeTurns(turns)],
)
trainer.fit(module, DataLoader(Blocks(), batch_size=task.batch_size, pin_memory=task.device == "cuda"))
