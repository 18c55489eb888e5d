"""Sets what changes from step to step: learning rate, batch size, sequence length, weight decay and momentum.

All of it follows from the training state alone. So nothing is saved, and a resumed run continues exactly.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from lmtrain.data.prefetch import MicroBatch
from lmtrain.loop.evaluation_weights import averages_weights
from lmtrain.loop.step_sizes import BatchSizes, TokenPoints, value_at
from lmtrain.loop.training_parts import Parts
from lmtrain.scheduler import Shares, share_at

# Stands for a learning rate of 0 where weight decay does not follow it: too small to move a weight, but not a divisor
# of 0.
TINY_SHARE = 1e-20
MOST_COMPILED_LENGTHS = 7  # torch.compile keeps 8 versions of a model, and one is for evaluation


class Schedules:
    """Sets the values of the optimizer's groups, and knows the size of each step.

    Args:
        parts: The parts of the run.
        micro_batches: Micro-batches per step before the first point of `batch`.
        batch: Tokens and the sequences per step from there on; None means always the same.
        length: Tokens and the length of sequences from there on; None means always the loader's.
        weight_decay: Finished steps and the share of the weight decay after them; None means always all of it.
        momentum: Finished steps and the share of the momentum after them; None means always all of it.

    Raises:
        ValueError: the optimizer does not have what a schedule changes, or a share is too large.
    """

    def __init__(
        self,
        parts: Parts,
        micro_batches: int,
        batch: TokenPoints | None,
        length: TokenPoints | None,
        weight_decay: Shares | None,
        momentum: Shares | None,
    ) -> None:
        loader = parts.train_loader
        self._schedule, self._optimizer = parts.schedule, parts.optimizer
        self._batch_size, self._block_size = loader.batch_size, loader.block_size
        self.batch_sizes = BatchSizes(micro_batches * loader.batch_size, loader.block_size, batch or ())
        self._lengths, self._weight_decay, self._momentum = length or (), weight_decay, momentum
        self._check_lengths(parts)
        self._check_values()

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of the step after so many finished ones, without the factors of groups."""
        return self._schedule(step)

    def set_learning_rate(self, step: int) -> None:
        """Set the learning rate of each group for the step after so many finished ones."""
        for group in self._optimizer.param_groups:
            group["lr"] = self._schedule(step) * group.get("lr_scale", 1.0)

    def micro_batches(self, tokens: int) -> int:
        """Return the micro-batches, of all processes, of the step that starts after so many tokens."""
        return self.batch_sizes.at(tokens) // self._batch_size

    def set_micro_batches(self, number: int) -> None:
        """Set the micro-batches of all following steps, for measurements."""
        self.batch_sizes = BatchSizes(number * self._batch_size, self._block_size)

    def length(self, tokens: int) -> int:
        """Return the length of the sequences in the step that starts after so many tokens."""
        return value_at(self._lengths, tokens, self._block_size)

    def cut(self, batch: MicroBatch, tokens: int) -> MicroBatch:
        """Return a micro-batch of the step that starts after so many tokens, with sequences of the scheduled length."""
        return batch.cut(self.length(tokens)) if self._lengths else batch

    @property
    def changes_length(self) -> bool:
        """Whether steps may have sequences of different lengths."""
        return bool(self._lengths)

    @contextmanager
    def values(self, step: int) -> Iterator[None]:
        """Give the groups their scheduled weight decay and momentum for an update, and afterwards their own again.

        So a group always has its own values when it is saved or compared with the config.
        """
        groups = self._optimizer.param_groups
        scheduled = [self._scheduled(group, step) for group in groups]
        own = [{key: group[key] for key in values} for group, values in zip(groups, scheduled, strict=True)]
        try:
            for group, values in zip(groups, scheduled, strict=True):
                group.update(values)
            yield
        finally:
            for group, values in zip(groups, own, strict=True):
                group.update(values)

    def _scheduled(self, group: dict[str, Any], step: int) -> dict[str, Any]:
        """Return the values of a group that are not its own in this step."""
        values: dict[str, Any] = {}
        if self._weight_decay is not None and group.get("weight_decay"):
            values["weight_decay"] = group["weight_decay"] * share_at(self._weight_decay, step)
        if not group.get("decay_follows_lr", True) and group["weight_decay"]:
            peak, rate = self._optimizer.defaults["lr"], self._schedule(step)
            if rate == 0:
                rate = TINY_SHARE * peak
                values["lr"] = rate * group.get("lr_scale", 1.0)
            values["weight_decay"] = values.get("weight_decay", group["weight_decay"]) * (peak / rate)
        if self._momentum is not None and (key := self._momentum_key()) in group:
            share = share_at(self._momentum, step)
            own = group[key]
            values[key] = (own[0] * share, *own[1:]) if key == "betas" else own * share
        return values

    def _momentum_key(self) -> str:
        """Return the key of the groups' momentum: those of Muon have one, beside groups of AdamW with betas."""
        return "momentum" if any(group.get("momentum") for group in self._optimizer.param_groups) else "betas"

    def _check_lengths(self, parts: Parts) -> None:
        lengths = {self._block_size, *(length for _, length in self._lengths)}
        if parts.system.compiles and len(lengths) > MOST_COMPILED_LENGTHS:
            raise ValueError(
                f"trainer.length_schedule: has {len(lengths)} lengths with data.block_size, but torch.compile keeps "
                f"code for {MOST_COMPILED_LENGTHS}; use fewer lengths, or system.compile=false"
            )

    def _check_values(self) -> None:
        groups, name = self._optimizer.param_groups, type(self._optimizer).__name__
        if self._weight_decay is not None and not any(group.get("weight_decay") for group in groups):
            raise ValueError(
                f"trainer.weight_decay_schedule: {name} has no weight decay here, so there is nothing to change; set "
                "optimizer.weight_decay, or leave the schedule out"
            )
        if self._momentum is None:
            return
        if averages_weights(self._optimizer):  # the weights for evaluation are computed with the same betas
            raise ValueError(
                f"trainer.momentum_schedule: the betas of {name} also say how it averages weights, so they must stay "
                "the same; leave the schedule out"
            )
        key = self._momentum_key()
        own = [_first(group[key]) for group in groups if group.get(key)]
        if not own:
            raise ValueError(
                f"trainer.momentum_schedule: {name} has neither momentum nor betas; leave the schedule out"
            )
        for step, share in self._momentum:
            if max(own) * share >= 1:
                raise ValueError(
                    f"trainer.momentum_schedule: a share of {share:g} at step {step} makes {key} {max(own) * share:g}, "
                    f"but it must be less than 1; use shares below {1 / max(own):.4g}"
                )


def _first(value: float | Sequence[float]) -> float:
    return value if isinstance(value, int | float) else value[0]
