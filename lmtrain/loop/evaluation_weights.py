"""Weights for evaluation that differ from those in training: their running mean, or what the optimizer makes of them.

They are used for validation and samples, and saved beside the weights of training, for the commands that only use the
model.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# The files of a checkpoint that have weights for evaluation: a running mean, and those that the optimizer computes.
EMA, OF_OPTIMIZER = "ema", "evaluation"
WARMUP = 10  # a mean of few steps must forget the initial weights sooner


class EvaluationWeights:
    """Holds the parameters of a model, by name, which also evaluate it. Subclasses evaluate with other weights."""

    file: str | None = None  # the file of a checkpoint that has them

    def __init__(self, params: Mapping[str, nn.Parameter]) -> None:
        self.params = {name: param for name, param in params.items() if param.requires_grad}

    def values(self) -> Mapping[str, Tensor]:
        """Return the weights for evaluation by parameter name, or nothing if they are those of training."""
        return {}

    def after_update(self, step: int, skipped: Tensor) -> None:
        """Take over the parameters after the update of a step, unless it was skipped (a bool scalar on the device)."""

    def restore(self, values: Mapping[str, Tensor]) -> None:
        """Restore what `values` returned; without any, begin with the parameters as they are."""

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Let the parameters have these weights in the `with` block, and then exactly their own ones again.

        The block may be interrupted by a signal, but not this method, which would leave parameters of both kinds.
        """
        values = self.values()
        kept = self._copies(values)
        self._set(values)
        try:
            yield
        finally:
            self._set(kept)

    def _copies(self, names: Iterable[str]) -> dict[str, Tensor]:
        return {name: self.params[name].detach().clone() for name in names}

    def _set(self, values: Mapping[str, Tensor]) -> None:
        copy_into(self.params, values)


class RunningMean(EvaluationWeights):
    """Keeps an exponential moving average of the parameters.

    In the step after `step` steps, `min(decay, (1 + step) / (10 + step))` of the mean is kept, so that it forgets the
    initial weights soon.

    Sources: Polyak and Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), for averages of the
    iterates; Tan and Le, "EfficientNet" (2019) and TensorFlow's ExponentialMovingAverage for this form.
    """

    file = EMA

    def __init__(self, params: Mapping[str, nn.Parameter], decay: float) -> None:
        super().__init__(params)
        self.decay = decay
        self.restore({})

    def values(self) -> Mapping[str, Tensor]:
        return self.mean

    @torch.no_grad()
    def after_update(self, step: int, skipped: Tensor) -> None:
        share = 1 - min(self.decay, (1 + step) / (WARMUP + step))
        shares = {dtype: (~skipped).to(dtype) * share for dtype in {mean.dtype for mean in self.mean.values()}}
        for name, mean in self.mean.items():  # torch._foreach_lerp_ would need as much memory again as the weights
            mean.lerp_(self.params[name], shares[mean.dtype])

    def restore(self, values: Mapping[str, Tensor]) -> None:
        self.mean = {
            name: values.get(name, param).detach().to(param.device, copy=True) for name, param in self.params.items()
        }


class OptimizerWeights(EvaluationWeights):
    """Asks the optimizer for the weights, as schedule-free optimizers want it: it has methods `train` and `eval`."""

    file = OF_OPTIMIZER

    def __init__(self, params: Mapping[str, nn.Parameter], optimizer: Any) -> None:
        super().__init__(params)
        self.optimizer = optimizer

    def values(self) -> Mapping[str, Tensor]:
        with self.in_use():
            return self._copies(self.params)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        # The optimizer computes them in place, and its way back rounds.
        kept = self._copies(self.params)
        self.optimizer.eval()
        try:
            yield
        finally:
            self.optimizer.train()
            self._set(kept)


@torch.no_grad()
def copy_into(params: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    """Copy values into parameters of these names, in place, because compiled code has their addresses."""
    for name, value in values.items():
        params[name].copy_(value)


def load_weights_to_use(model: nn.Module, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    """Load the weights of a checkpoint with which a model is used, and not trained further.

    Raises:
        RuntimeError: they do not fit the model.
    """
    model.load_state_dict(dict(tensors.get("model", {})))
    values = tensors.get(EMA) or tensors.get(OF_OPTIMIZER) or {}
    params = dict(model.named_parameters())
    if unknown := values.keys() - params.keys():
        raise RuntimeError(f"weights for evaluation of {', '.join(sorted(unknown))}, which the model does not have")
    copy_into(params, values)


def averages_weights(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimizer has weights for evaluation: then it has methods `train` and `eval`, like modules."""
    return all(callable(getattr(optimizer, name, None)) for name in ("train", "eval"))


def evaluation_weights(
    params: Mapping[str, nn.Parameter], optimizer: torch.optim.Optimizer, ema_decay: float | None
) -> EvaluationWeights:
    """Return the weights with which a model is evaluated, given its parameters by name.

    Raises:
        ValueError: a running mean is wanted beside an optimizer that has weights for evaluation itself.
    """
    averages = averages_weights(optimizer)
    if averages and ema_decay is not None:
        raise ValueError(
            f"trainer.ema_decay={ema_decay}: this optimizer already averages the weights; use trainer.ema_decay=null"
        )
    if averages:
        return OptimizerWeights(params, optimizer)
    return EvaluationWeights(params) if ema_decay is None else RunningMean(params, ema_decay)
