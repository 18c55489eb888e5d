"""Parameter groups for every optimizer: which parameters decay, at which learning rate, and by which algorithm."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from lmtrain.optimizer.rules import CONDITIONS, Role, checked_rules, matches, role_of, treatment

FUSED_DEVICES = ("cuda", "cpu")  # devices for which torch has a kernel that updates all parameters at once

ParameterGroups = list[dict[str, Any]]


def parameter_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    weight_decay: float,
    rules: Sequence[Mapping[str, Any]] = (),
    algorithms: Mapping[Role, str] | None = None,
    lr_scales: Mapping[str, float] | None = None,
) -> ParameterGroups:
    """Return a group for each treatment of the trainable parameters.

    Without rules, only tensors of two or more dimensions decay: matrices and embeddings. Norm gains and biases set a
    scale, and pulling them to zero only works against the loss. `algorithms` says by which algorithm each role is
    updated, for an optimizer that has several; `lr_scales` has the factor of the learning rate of an algorithm.

    Raises:
        ValueError: A rule has a mistake, is about no parameter, or names an unknown algorithm.
    """
    rules = checked_rules(rules)
    named = [(name, param) for name, param in named_parameters if param.requires_grad]
    for number, rule in enumerate(rules, 1):
        if not any(matches(rule, name, param.ndim) for name, param in named):
            conditions = ", ".join(f"{key}: {rule.get(key)}" for key in CONDITIONS if key in rule)
            some = ", ".join(name for name, _ in named[:: max(1, len(named) // 4)])
            raise ValueError(
                f"optimizer.rules: rule {number} ({conditions}): matches no parameter of the model, which has such as "
                f"{some}"
            )
        if (chosen := rule.get("algorithm")) is not None and chosen not in (known := set((algorithms or {}).values())):
            choices = (
                f"choose from {', '.join(sorted(known))}" if known else "this optimizer has only one; leave it out"
            )
            raise ValueError(f"optimizer.rules: {dict(rule)}: unknown algorithm {chosen}; {choices}")
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for name, param in named:
        role = role_of(name, param.ndim)
        said = treatment(rules, name, param.ndim)
        algorithm = said.pop("algorithm", algorithms[role]) if algorithms else None
        values: dict[str, Any] = {} if algorithm is None else {"algorithm": algorithm}
        values["weight_decay"] = weight_decay if param.ndim >= 2 else 0.0
        values["lr_scale"] = (lr_scales or {}).get(algorithm or "", 1.0)
        values |= said
        key = (param.ndim >= 2, *values.values())  # a weight decay of 0 leaves the number of groups as it is
        groups.setdefault(key, {"params": [], **values})["params"].append(param)
    return list(groups.values())


def with_decay(groups: ParameterGroups, *, follows_lr: bool, cautious: bool = False) -> ParameterGroups:
    """Return the groups with the options of their weight decay, where these are not the usual ones.

    The trainer reads `decay_follows_lr` (see `lmtrain.loop.schedules`), and the algorithms read `cautious_decay`.
    """
    options = ({} if follows_lr else {"decay_follows_lr": False}) | ({"cautious_decay": True} if cautious else {})
    return [{**group, **options} for group in groups]


def one_algorithm(name: str) -> dict[Role, str]:
    """Return the algorithm of each role for an optimizer that has only one."""
    return {"embedding": name, "output": name, "hidden": name, "vector": name}


def can_fuse(groups: ParameterGroups) -> bool:
    """Return whether `fused=True` of torch's optimizers works for all these parameters."""
    return all(param.device.type in FUSED_DEVICES for group in groups for param in group["params"])
