"""A bare PyTorch loop: eager, with fused AdamW, and nothing else. Whole logits, no logging, no checks."""

import numpy as np
import torch
from plain_model import build_model
from turns import Turns, read_task

task = read_task()
device = torch.device(task.device)
if device.type == "cuda":
    torch.set_float32_matmul_precision("high")
tokens = np.memmap(task.tokens, dtype=np.uint16, mode="r")
B, T = task.batch_size, task.block_size


def batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return inputs and targets (B, T): the blocks of the file in order, again and again."""
    blocks = (step * B + np.arange(B)) % task.blocks
    windows = np.stack([tokens[i * T : i * T + T + 1] for i in blocks]).astype(np.int64)
    x, y = torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:])
    return x.to(device, non_blocking=True), y.to(device, non_blocking=True)


model = build_model(task).to(device)
decayed = [p for p in model.parameters() if p.ndim >= 2]
others = [p for p in model.parameters() if p.ndim < 2]
optimizer = torch.optim.AdamW(
    [{"params": decayed, "weight_decay": task.weight_decay}, {"params": others, "weight_decay": 0.0}],
    lr=task.lr,
    betas=task.betas,
    fused=True,
)
turns = Turns(parameters=sum(p.numel() for p in model.parameters()), dtype=task.dtype, compiled=False)
losses: list[torch.Tensor] = []
for step in range(task.max_steps):
    x, y = batch(step)
    with torch.autocast(device.type, torch.bfloat16, enabled=task.dtype == "bfloat16"):
        _, loss = model(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), task.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.detach())
    done = step + 1
    if done == 1 or done % task.log_interval == 0:
        turns.report(done, torch.stack(losses).tolist())
        losses = []
