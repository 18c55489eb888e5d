"""SOAP: AdamW in the eigenbasis of Shampoo's preconditioner, from the package pytorch-optimizer."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from lmtrain.optimizer.library import library

Beta = Annotated[float, Interval(ge=0, lt=1)]


def soap(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    shampoo_beta: Beta,
    precondition_frequency: PositiveInt,
    max_precondition_dim: PositiveInt,
    eps: PositiveFloat,
    rules: list[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """Return SOAP, whose first step only looks at the gradient and changes no weight.

    Its state has two square matrices for each side of a weight matrix, so it is the largest of all optimizers here.

    Source: Vyas et al., "SOAP: Improving and Stabilizing Shampoo using Adam" (2024), algorithm 3.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Peak learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights by the learning rate times this.
        betas: Decay rates of the running means of the gradient, and of its square in the eigenbasis.
        shampoo_beta: Decay rate of the running means from which the eigenbasis is computed.
        precondition_frequency: Steps between two computations of the eigenbasis.
        max_precondition_dim: A longer side of a matrix, such as that of the vocabulary, keeps its basis.
        eps: Added to the denominator, against division by zero.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.

    Raises:
        ValueError: The package is not installed.
    """
    options = {
        "betas": betas,
        "shampoo_beta": shampoo_beta,
        "precondition_frequency": precondition_frequency,
        "max_precondition_dim": max_precondition_dim,
        "eps": eps,
    }
    return library(named_parameters, name="soap", lr=lr, weight_decay=weight_decay, options=options, rules=rules)
