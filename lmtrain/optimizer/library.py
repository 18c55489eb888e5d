"""Any optimizer of the package pytorch-optimizer, by its name."""

import difflib
import inspect
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from pydantic import NonNegativeFloat, PositiveFloat
from torch import nn

from lmtrain.optimizer.parameter_groups import ParameterGroups, parameter_groups
from lmtrain.optimizer.rules import Role

INSTALL = "pip install 'lmtrain[optimizers]'"
# Optimizers that need a flag in each group: whether it holds hidden matrices.
HIDDEN: Mapping[Role, str] = {"hidden": "hidden", "embedding": "other", "output": "other", "vector": "other"}
HIDDEN_FLAG = "use_muon"
# Optimizers that keep something outside the state of their parameters, so that a resumed run would go on differently.
INEXACT = ("kron", "madgrad", "magma", "stablespam")
PLAIN = (torch.Tensor, int, float, bool, str, type(None))


def library(
    named_parameters: Iterable[tuple[str, nn.Parameter]],
    *,
    name: str,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    options: dict[str, Any],
    rules: list[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """Return an optimizer of pytorch-optimizer, after three steps with small tensors that show that it works here.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        name: Its name, such as `soap`, `prodigy` or `ademamix`; upper and lower case are the same.
        lr: Peak learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Weight decay of tensors of two or more dimensions.
        options: Its other arguments, by name.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.

    Raises:
        ValueError: The package is not installed, there is no such optimizer or argument, or it cannot be used: it needs
            a closure, or more than the parameters, or it keeps state that a checkpoint cannot hold.
    """
    found = _class(name)
    known = inspect.signature(found.__init__).parameters.keys() - {"self", "params", "kwargs", "lr", "weight_decay"}
    for option in options:
        if option not in known:
            near = difflib.get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(sorted(known))}"
            raise ValueError(f"optimizer.options.{option}: {name} has no such argument; {hint}")
    with ThreadPoolExecutor(1) as thread:  # `plan` builds optimizers in a mode of its thread, for tensors without data
        thread.submit(_try, found, name, lr, options).result()
    groups = parameter_groups(named_parameters, weight_decay, rules or (), HIDDEN)
    return _build(found, groups, lr, options)


def _class(name: str) -> Any:
    try:
        import pytorch_optimizer
    except ImportError as error:
        raise ValueError(f"optimizer=library: needs the package pytorch-optimizer; {INSTALL}") from error
    known = pytorch_optimizer.get_supported_optimizers()
    if name.lower() not in known:
        near = difflib.get_close_matches(name.lower(), known, n=3)
        hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(sorted(known))}"
        raise ValueError(f"optimizer.name={name}: pytorch-optimizer has no such optimizer; {hint}")
    if name.lower() in INEXACT:
        raise ValueError(f"optimizer.name={name}: cannot be used here, because it would not resume exactly")
    return pytorch_optimizer.load_optimizer(name)


def _build(found: Any, groups: ParameterGroups, lr: float, options: Mapping[str, Any]) -> torch.optim.Optimizer:
    """Build the optimizer; options reach each group through its defaults."""
    flagged = [
        {
            **{key: value for key, value in group.items() if key != "algorithm"},
            HIDDEN_FLAG: group["algorithm"] == "hidden",
        }
        for group in groups
    ]
    takes_lr = "lr" in inspect.signature(found.__init__).parameters
    optimizer: torch.optim.Optimizer = found(flagged, **({"lr": lr} if takes_lr else {}), **options)
    if callable(begin := getattr(optimizer, "train", None)):  # schedule-free ones have a mode, like modules
        begin()
    return optimizer


def _try(found: Any, name: str, lr: float, options: Mapping[str, Any]) -> None:
    """Take three steps with two matrices and a vector, and look at the state that they leave."""
    shapes = {"tall.weight": (8, 6), "wide.weight": (64, 192), "gain": (6,)}
    small = {name: nn.Parameter(torch.ones(shape)) for name, shape in shapes.items()}
    matrices = [small["tall.weight"], small["wide.weight"]]
    groups: ParameterGroups = [
        {"params": matrices, "algorithm": "hidden", "weight_decay": 0.1, "lr_scale": 1.0},
        {"params": [small["gain"]], "algorithm": "other", "weight_decay": 0.0, "lr_scale": 1.0},
    ]
    with torch.random.fork_rng(devices=[]):
        try:
            optimizer = _build(found, groups, lr, options)
            before = _own_values(optimizer)
            for step in range(3):
                for param in small.values():
                    param.grad = torch.linspace(-1, 1 + step, param.numel()).reshape(param.shape)
                optimizer.step()
        except Exception as error:
            raise ValueError(f"optimizer.name={name}: cannot be used here: {type(error).__name__}: {error}") from error
    changed = [name for name, value in _own_values(optimizer).items() if before.get(name, before) != value]
    changed += [str(key) for key in optimizer.state if not isinstance(key, torch.Tensor)]
    if changed:
        raise ValueError(
            f"optimizer.name={name}: cannot be used here, because it would not resume exactly: it keeps "
            f"{', '.join(changed)} outside the state of its parameters"
        )
    for param in small.values():
        for key, value in optimizer.state[param].items():
            if (strange := _strange(value)) is not None:
                raise ValueError(
                    f"optimizer.name={name}: cannot be used here, because a checkpoint cannot hold its state "
                    f"({key} has a {strange})"
                )


def _own_values(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """Return the attributes of an optimizer that may be a state, in words."""
    return {name: repr(value) for name, value in vars(optimizer).items() if isinstance(value, PLAIN)}


def _strange(value: Any) -> str | None:
    """Return the type of a value that a checkpoint cannot hold, or None."""
    if isinstance(value, list | tuple):
        return next((found for item in value if (found := _strange(item)) is not None), None)
    if isinstance(value, dict):
        keys = next((type(key).__name__ for key in value if not isinstance(key, str)), None)
        return f"dict with {keys} keys" if keys else _strange(list(value.values()))
    return None if isinstance(value, PLAIN) else type(value).__name__
