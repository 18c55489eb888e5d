"""Tests of fake tensors; and that optimizers work without torch's compiler as they do with it once it is there.

If the latter fail with a new version of torch, runs only start more slowly; see `lmtrain/torch_internals.py`.
"""

import json
import subprocess
import sys
from typing import Any

import pytest

from lmtrain.torch_internals import fake_tensors

pytestmark = pytest.mark.slow  # each starts a process of its own, because this one may have imported the compiler

USE_OPTIMIZERS = """
import json, sys
import torch
from lmtrain.torch_internals import COMPILER, postpone_compiler_import

changed = postpone_compiler_import() if sys.argv[1] == "postponed" else 0

def made(optimizer_class):
    torch.manual_seed(0)
    params = [torch.nn.Parameter(torch.randn(3, 2)), torch.nn.Parameter(torch.randn(2, 2))]
    return params, optimizer_class(params[:1], lr=0.1)

def use(optimizer_class, step_with=lambda step: step):
    params, optimizer = made(optimizer_class)
    optimizer.add_param_group({"params": params[1:]})
    step = step_with(optimizer.step)
    for number in range(2):
        sum((param.sin() ** 2).sum() for param in params).backward()
        step()
        optimizer.zero_grad()
    assert torch.is_grad_enabled()
    again = made(optimizer_class)[1]
    again.add_param_group({"params": params[1:]})
    again.load_state_dict(optimizer.state_dict())
    return [param.tolist() for param in params]

def closure_value():
    params, optimizer = made(torch.optim.SGD)
    def closure():
        optimizer.zero_grad()
        loss = (params[0] ** 2).sum()  # needs gradients, which a step turns off outside the closure
        loss.backward()
        return loss
    return optimizer.step(closure).item()

classes = [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Muon]
found = {cls.__name__: use(cls) for cls in classes} | {"closure": closure_value()}
without_compiler = COMPILER not in sys.modules

compiled_model = torch.compile(torch.nn.Linear(2, 2), backend="eager")
compiled_model(torch.ones(1, 2)).sum().backward()
compiles = lambda step: torch.compile(step, backend="eager")
found["compiled later"] = use(torch.optim.AdamW, compiles)
found["eager later"] = use(torch.optim.AdamW)
hidden = [
    hasattr(getattr(method.__wrapped__, "__dynamo_disable", None), "_torchdynamo_disable")
    for method in (torch.optim.Optimizer.add_param_group, torch.optim.Optimizer.zero_grad)
]
print(json.dumps({"changed": changed, "without": without_compiler, "found": found, "hidden": hidden,
                  "again": postpone_compiler_import()}))
"""


def used(how: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", USE_OPTIMIZERS, how], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def test_optimizers_do_the_same_without_the_compiler_and_once_it_is_imported() -> None:
    postponed, torchs = used("postponed"), used("as torch does")
    assert postponed["changed"] > 4, "torch has other methods now; runs start more slowly"
    assert postponed["without"]
    assert not torchs["without"]
    assert postponed["found"] == torchs["found"]
    assert postponed["found"]["eager later"] == postponed["found"]["AdamW"]
    # Once the compiler is there, torch hides its methods from it as always, and nothing is changed any more.
    assert postponed["hidden"] == torchs["hidden"] == [True, True]
    assert postponed["again"] == 0


def test_fake_tensors_have_no_memory() -> None:
    import torch

    with fake_tensors():
        large = torch.ones(10**15) + 1
    assert large.shape == (10**15,)
