"""An optimizer whose parameter groups are updated by different algorithms, such as Muon beside AdamW."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from lmtrain.optimizer.parameter_groups import ParameterGroups

State = dict[str, Any]
# Updates parameters in place. Its arguments are the parameters, their gradients and states, the values of the group,
# and None or a scalar on the device: 1 where the step is bad and must change nothing.
Algorithm = Callable[[Sequence[Tensor], Sequence[Tensor], Sequence[State], Mapping[str, Any], Tensor | None], None]


# A key of the state that no other algorithm of the same optimizer has.
FIRST_KEYS = {
    "adafactor": "step",
    "adamw": "exp_avg",
    "adamw8bit": "exp_avg_codes",
    "lion": "exp_avg",
    "muon": "momentum",
}


class GroupedOptimizer(torch.optim.Optimizer):
    """Updates each parameter group by the algorithm that its value `algorithm` names.

    Whether a step is bad is known on the device only. As torch's fused optimizers do, this one takes that as
    `found_inf` and changes nothing then, without waiting for the device.

    Args:
        groups: Parameter groups, with all values that their algorithms read.
        algorithms: The algorithms by name.
    """

    _step_supports_amp_scaling = True  # torch.amp.GradScaler and the trainer set `found_inf` for such optimizers

    def __init__(self, groups: ParameterGroups, algorithms: Mapping[str, Algorithm], lr: float) -> None:
        super().__init__(groups, {"lr": lr, "fused": True})  # AdamW's step counters are on the device
        self._algorithms = algorithms

    def drop_other_states(self) -> int:
        """Drop the states that another algorithm made than the one of their group; return how many they are."""
        dropped = 0
        for group in self.param_groups:
            for param in group["params"]:
                state = self.state.get(param)
                if state and FIRST_KEYS[group["algorithm"]] not in state:
                    del self.state[param]
                    dropped += 1
        return dropped

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf = getattr(self, "found_inf", None)
        for group in self.param_groups:
            params = [param for param in group["params"] if param.grad is not None]
            if params:
                grads, states = [param.grad for param in params], [self.state[param] for param in params]
                self._algorithms[group["algorithm"]](params, grads, states, group, found_inf)
        return loss


def adamw_update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[State],
    group: Mapping[str, Any],
    found_inf: Tensor | None,
) -> None:
    """Update by AdamW; the group has `betas`, `eps`, `weight_decay` and `lr`.

    This is torch's fused kernel, unless the group has an option that the kernel lacks: `eps_root` or `cautious_decay`.
    """
    for param, state in zip(params, states, strict=True):
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32, device=param.device)
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(param), torch.zeros_like(param)
    if group.get("eps_root") or group.get("cautious_decay"):
        _adamw_with_options(params, grads, states, group, found_inf)
        return
    beta1, beta2 = group["betas"]
    adamw(
        list(params),
        list(grads),
        [state["exp_avg"] for state in states],
        [state["exp_avg_sq"] for state in states],
        [],
        [state["step"] for state in states],
        fused=True,
        found_inf=found_inf,
        amsgrad=False,
        beta1=beta1,
        beta2=beta2,
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _adamw_with_options(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    states: Sequence[State],
    group: Mapping[str, Any],
    found_inf: Tensor | None,
) -> None:
    (beta1, beta2), (grads, share) = group["betas"], finite(grads, found_inf)
    for state in states:
        state["step"] += share
    means, squares = [state["exp_avg"] for state in states], [state["exp_avg_sq"] for state in states]
    move_towards(means, grads, (1 - beta1) * share)
    move_towards(squares, torch._foreach_mul(grads, grads), (1 - beta2) * share)
    # Before the first good step, no mean has a value; there the update counts nothing, but it must be finite.
    steps = torch.stack([state["step"] for state in states]).double().clamp(min=1)  # (parameters,)
    updates = torch._foreach_div(means, (1 - beta1**steps).unbind())
    sizes = torch._foreach_div(squares, (1 - beta2**steps).unbind())
    torch._foreach_add_(sizes, group.get("eps_root", 0.0))
    torch._foreach_sqrt_(sizes)
    torch._foreach_add_(sizes, group["eps"])
    torch._foreach_div_(updates, sizes)
    decay_and_subtract(params, updates, group, share)


def finite(grads: Sequence[Tensor], found_inf: Tensor | None) -> tuple[list[Tensor], Tensor | float]:
    """Return gradients that are finite, and the share of the step to take: 1, or 0 if it is bad."""
    if found_inf is None:
        return list(grads), 1.0
    return [torch.where(found_inf.bool(), 0.0, grad) for grad in grads], 1.0 - found_inf


def move_towards(means: Sequence[Tensor], values: Sequence[Tensor], weight: Tensor | float) -> None:
    """Move running means towards new values, in place: `mean += weight · (value - mean)`."""
    differences = torch._foreach_sub(list(values), list(means))
    torch._foreach_mul_(differences, weight)
    torch._foreach_add_(list(means), differences)


def decay_and_subtract(
    params: Sequence[Tensor], updates: Sequence[Tensor], group: Mapping[str, Any], share: Tensor | float
) -> None:
    """Shrink the parameters by the weight decay and subtract the updates, both times the learning rate, in place.

    With `cautious_decay`, a number shrinks only where its update also moves it towards zero, or is zero.

    Source: Chen et al., "Cautious Weight Decay" (2025), algorithm 1.
    """
    lr = group["lr"] * share
    if group["weight_decay"] and group.get("cautious_decay"):
        # Signs, since a product of two small numbers can be 0; -1 becomes 0, and 0 and 1 become 1.
        shrinks = torch._foreach_sign(list(updates))
        torch._foreach_mul_(shrinks, torch._foreach_sign(list(params)))
        torch._foreach_add_(shrinks, 1.0)
        torch._foreach_clamp_max_(shrinks, 1.0)
        torch._foreach_mul_(shrinks, lr * group["weight_decay"])
        torch._foreach_mul_(shrinks, list(params))
        torch._foreach_sub_(list(params), shrinks)
    elif group["weight_decay"]:
        torch._foreach_mul_(list(params), 1 - lr * group["weight_decay"])
    torch._foreach_sub_(list(params), torch._foreach_mul(list(updates), lr))
