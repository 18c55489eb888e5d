"""Reads from a run's files what its losses measure: which tokens, by which tokenizer, with how much context.

Every run records in `environment.json` what its evaluations measured. For runs of older versions, a part of that
follows from their configs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmtrain.comparison.compared_run import ComparedRun, mapping_at
from lmtrain.comparison.labels import hashable, setting_text
from lmtrain.files.numbers import is_number

WHOLE_SPLIT = "whole split"


@dataclass(frozen=True)
class Measurement:
    """What a metric of a run measures; None for what is not known.

    Attributes:
        data: The fingerprint of the tokens.
        text: Identifies the text that the tokens encode.
        tokenizer: The checksum of the tokenizer.
        block_size: The largest context of a prediction, in tokens.
        tokens: The number of target tokens, or `WHOLE_SPLIT`.
        weights: The weights of a mixture of which a part is measured.
        masked: Whether a prediction sees only its own document.
        changed: The run itself, if a resume changed what it measures.
    """

    data: str | None = None
    text: str | None = None
    tokenizer: str | None = None
    block_size: int | None = None
    tokens: int | str | None = None
    weights: str | None = None
    masked: bool | None = None
    changed: str | None = None
    recorded: bool = field(default=False, compare=False)


def measurement(run: ComparedRun, metric: str, steps: Sequence[float] | None = None) -> Measurement:
    """Return what a metric of a run measures at some steps (None: at all); all unknown if it is not a loss of text."""
    if metric.startswith("train/"):
        return Measurement(
            data=_text(mapping_at(run.environment, "data").get("train")),
            block_size=_count(run.config.get("data.block_size")),
            weights=_weights(run),
            masked=_flag(run.config.get("model.mask_documents")),
        )
    split = metric.partition("/")[0]
    if split not in ("val", "train_eval"):
        return Measurement(recorded=True)
    found = list(dict.fromkeys(_recorded(entry, split) for entry in _evaluations(run, metric, steps)))
    if len(found) > 1:
        return Measurement(changed=str(run.path), recorded=True)
    return found[0] if found else _derived(run, split)


def _evaluations(run: ComparedRun, metric: str, steps: Sequence[float] | None) -> Iterable[Mapping[str, Any]]:
    """Yield the records of the evaluations that logged a metric at some steps, in the order of the steps."""
    resumes = run.environment.get("resumes")
    starts = [run.environment, *(resumes if isinstance(resumes, list) else [])]
    records = [_mapping(_mapping(start).get("evaluation")) for start in starts]
    records = [record for record in records if record]
    if len(records) < 2:
        yield from records
        return
    evaluated = run.series(metric)[0] if steps is None else steps
    for step in evaluated if len(evaluated) else [float("inf")]:
        # The newest process that began before this step did the evaluation: a resume replaces what came after it.
        before = [record for record in records if (_count(record.get("after_step")) or 0) < step]
        yield (before or records[:1])[-1]


def _recorded(record: Mapping[str, Any], split: str) -> Measurement:
    own = _mapping(record.get(split))
    whole = own.get("selection") == WHOLE_SPLIT
    return Measurement(
        data=_text(own.get("data")),
        text=_text(own.get("text")),
        tokenizer=_text(_mapping(own.get("tokenizer")).get("sha256")),
        block_size=_count(own.get("block_size")),
        tokens=WHOLE_SPLIT if whole else _count(own.get("tokens")),
        weights=_text(setting_text(hashable(own["weights"]))) if "weights" in own else None,
        masked=_flag(record.get("mask_documents")),
        recorded=True,
    )


def _derived(run: ComparedRun, split: str) -> Measurement:
    """Return what follows from the config of a run that did not record what it measured."""
    block_size = _count(run.config.get("data.block_size"))
    return Measurement(
        data=_text(mapping_at(run.environment, "data").get("val" if split == "val" else "train")),
        block_size=block_size,
        tokens=_derived_tokens(run, split, block_size or 0),
        masked=_flag(run.config.get("model.mask_documents")),
    )


def _derived_tokens(run: ComparedRun, split: str, block_size: int) -> int | str | None:
    batches_key = "trainer.eval_batches" if split == "val" else "trainer.eval_train_batches"
    batches, batch_size = _count(run.config.get(batches_key)), _count(run.config.get("data.batch_size"))
    tokens = _count(run.config.get("trainer.eval_tokens")) if split == "val" else None
    if batches is None and tokens is None:  # no limit, but a user's trainer may not have these keys
        return WHOLE_SPLIT if split == "val" and batches_key in run.config else None
    limits = [tokens, None if batches is None else batches * (batch_size or 0) * block_size]
    return min(limit for limit in limits if limit is not None) or None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return int(value) if is_number(value) and 0 <= value < 2**63 else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _weights(run: ComparedRun) -> str | None:
    weights = {key: value for key, value in run.config.items() if key.startswith("data.weights.")}
    return setting_text(hashable(weights)) if weights else None
