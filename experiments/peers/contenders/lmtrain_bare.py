"""A bare loop with lmtrain's model, optimizer and system, but without its trainer: what the trainer itself costs."""

from lmtrain.machine import limit_spinning

limit_spinning()  # as lmtrain itself does, before torch is loaded

import torch  # noqa: E402
from turns import Turns, read_task  # noqa: E402

from lmtrain.config.compose import compose  # noqa: E402
from lmtrain.config.preflight import preflight  # noqa: E402
from lmtrain.parts import build_parts  # noqa: E402

task = read_task()
cfg = preflight(compose(task.overrides))
parts = build_parts(cfg)
system, model, optimizer = parts.system, parts.model, parts.optimizer
forward = system.compile(model)
turns = Turns(parameters=sum(p.numel() for p in model.parameters()), dtype=system.dtype_name, compiled=system.compiles)
losses: list[torch.Tensor] = []
for step in range(task.max_steps):
    x, y = (part.to(system.device) for part in parts.train_loader.batch(step))
    for group in optimizer.param_groups:
        group["lr"] = parts.schedule(step)
    with system.autocast():
        _, loss = forward(x, y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), cfg.trainer.grad_clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(loss.detach())
    done = step + 1
    if done == 1 or done % task.log_interval == 0:
        turns.report(done, torch.stack(losses).tolist())
        losses = []
