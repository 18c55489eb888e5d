"""A training script like nanoGPT's `train.py`: one file, compiled, mixed precision, a log line every few steps.

Source: https://github.com/karpathy/nanoGPT. Kept: `torch.compile`, the batch of the next step, which is made and copied
while the GPU computes, fused AdamW (also on a CPU, where nanoGPT has a slower one), a line every `log_interval` steps.
Left out: evaluation, checkpoints, several GPUs. Different: the batches come in order, so that all contenders see the
same.
"""

import contextlib
import time

import numpy as np
import torch
from plain_model import build_model
from turns import Turns, read_task

task = read_task()
device_type = "cuda" if "cuda" in task.device else "cpu"
torch.backends.cuda.matmul.allow_tf32 = True
torch.backends.cudnn.allow_tf32 = True
ptdtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[task.dtype]
ctx = (
    contextlib.nullcontext() if task.dtype == "float32" else torch.amp.autocast(device_type=device_type, dtype=ptdtype)
)
batch_size, block_size = task.batch_size, task.block_size
next_block = 0


def get_batch() -> tuple[torch.Tensor, torch.Tensor]:
    global next_block
    data = np.memmap(task.tokens, dtype=np.uint16, mode="r")  # anew for each batch, as in nanoGPT: no memory leak
    ix = [(next_block + i) % task.blocks * block_size for i in range(batch_size)]
    next_block += batch_size
    x = torch.stack([torch.from_numpy(data[i : i + block_size].astype(np.int64)) for i in ix])
    y = torch.stack([torch.from_numpy(data[i + 1 : i + 1 + block_size].astype(np.int64)) for i in ix])
    if device_type == "cuda":
        return x.pin_memory().to(task.device, non_blocking=True), y.pin_memory().to(task.device, non_blocking=True)
    return x, y


model = build_model(task).to(task.device)
decay_params = [p for p in model.parameters() if p.dim() >= 2]
nodecay_params = [p for p in model.parameters() if p.dim() < 2]
optim_groups = [
    {"params": decay_params, "weight_decay": task.weight_decay},
    {"params": nodecay_params, "weight_decay": 0.0},
]
optimizer = torch.optim.AdamW(optim_groups, lr=task.lr, betas=task.betas, fused=True)
turns = Turns(parameters=sum(p.numel() for p in model.parameters()), dtype=task.dtype, compiled=True)
model = torch.compile(model)

X, Y = get_batch()
iter_num = 0
t0 = time.time()
while iter_num < task.max_steps:
    for param_group in optimizer.param_groups:
        param_group["lr"] = task.lr
    with ctx:
        logits, loss = model(X, Y)
    X, Y = get_batch()  # while the GPU computes the forward pass
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), task.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    iter_num += 1
    if iter_num == 1 or iter_num % task.log_interval == 0:
        lossf = loss.item()
        t1 = time.time()
        print(f"iter {iter_num}: loss {lossf:.4f}, time {(t1 - t0) * 1000:.2f}ms", flush=True)
        turns.report(iter_num, [lossf])
        t0 = time.time()
