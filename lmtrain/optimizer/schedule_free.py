"""Schedule-free AdamW, from the package schedulefree."""

from collections.abc import Iterable
from typing import Annotated, Any

import torch
from annotated_types import Interval
from pydantic import NonNegativeFloat, PositiveFloat

from lmtrain.optimizer.parameter_groups import parameter_groups

Beta = Annotated[float, Interval(gt=0, lt=1)]


def schedule_free(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]],
    *,
    lr: PositiveFloat,
    weight_decay: NonNegativeFloat,
    betas: tuple[Beta, Beta],
    eps: PositiveFloat,
    rules: list[dict[str, Any]] | None = None,
) -> torch.optim.Optimizer:
    """Return AdamW whose weights for evaluation are an average, which replaces the decay of the learning rate.

    It trains at a point between that average and the fast weights. So validation losses, samples and the commands that
    use a run take the average, which a checkpoint has in a file of its own. Use a schedule that only warms up, such as
    `scheduler=constant`.

    Source: Defazio et al., "The Road Less Scheduled" (2024), algorithm 1.

    Args:
        named_parameters: The model's parameters; given by lmtrain.
        lr: Learning rate; the scheduler sets the learning rate of each step.
        weight_decay: Each step shrinks the weights by the learning rate times this.
        betas: Share of the average in the point of training, and the decay rate of the running mean of the squared
            gradient.
        eps: Added to the denominator, against division by zero.
        rules: Other values for some parameters; see `lmtrain.optimizer.rules.Rule`.

    Raises:
        ValueError: The package is not installed.
    """
    try:
        from schedulefree import AdamWScheduleFree
    except ImportError as error:
        raise ValueError(
            "optimizer=schedule_free: needs the package schedulefree; pip install 'lmtrain[optimizers]'"
        ) from error
    groups = parameter_groups(named_parameters, weight_decay, rules or ())
    optimizer: torch.optim.Optimizer = AdamWScheduleFree(groups, lr=lr, betas=betas, eps=eps)
    optimizer.train()  # type: ignore[attr-defined]
    return optimizer
