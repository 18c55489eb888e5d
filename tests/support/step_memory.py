"""Measures the memory of a real training step, for tests of simulated ones."""

import contextlib
from collections.abc import Callable

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from lmtrain.checkpoint.optimizer_state import optimizer_state
from lmtrain.loop.update import update
from lmtrain.plan.memory import StepSettings


def real_step(model: nn.Module, optimizer: torch.optim.Optimizer, numbers: StepSettings) -> None:
    """Run a step as `Trainer.step` does; the logits are kept until its end."""
    tokens = torch.zeros((numbers.batch_size, numbers.block_size), dtype=torch.int64, device=numbers.device)
    for _number in range(numbers.micro_batches):
        with (
            torch.autocast(numbers.device, numbers.dtype)
            if numbers.dtype != torch.float32
            else contextlib.nullcontext()
        ):
            _, loss = model(tokens, tokens)
        (loss / numbers.micro_batches).backward()
    nn.utils.clip_grad_norm_(list(model.parameters()), 1.0)
    update(
        optimizer,
        torch.amp.GradScaler(numbers.device, enabled=False),
        torch.zeros((), dtype=torch.bool, device=numbers.device),
    )
    optimizer.zero_grad(set_to_none=True)


def measured_on_the_cpu(
    make: Callable[[], nn.Module], make_optimizer: Callable[[nn.Module], torch.optim.Optimizer], numbers: StepSettings
) -> int:
    """Return the peak memory of a real step in bytes, from all allocations of torch."""
    model = make()
    optimizer = make_optimizer(model)
    real_step(model, optimizer, numbers)
    held = [*model.parameters(), *model.buffers()]
    held += optimizer_state(optimizer, model.named_parameters())[0].values()
    return sum(tensor.nbytes for tensor in held) + most_allocated(lambda: real_step(model, optimizer, numbers))


def most_allocated(work: Callable[[], object]) -> int:
    """Return the most bytes that tensors on the CPU need at once while this runs, beside those that exist before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        work()
    changes = [
        (event.start_ns(), event.nbytes())
        for event in profiled.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    now = most = 0
    for _, change in sorted(changes):
        now += change
        most = max(most, now)
    return most
