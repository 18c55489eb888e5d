"""Tells which runs have losses that measure the same, so that a verdict about them means something.

Every run records in `environment.json` what its evaluations measured. For runs of older versions, a part of that
follows from their configs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lmtrain.compare.compared_run import ComparedRun
from lmtrain.compare.labels import hashable, setting_text
from lmtrain.compare.notes import names
from lmtrain.files.numbers import is_number
from lmtrain.terminal.as_text import printable
from lmtrain.terminal.units import counted

BITS_PER_BYTE = "val/bits_per_byte"
CONVERTIBLE = ("val/loss", "val/perplexity")  # they count per token, so another tokenizer changes what they mean
WHOLE_SPLIT = "whole split"
# The ways in which two measurements can differ, each with the way out.
WAYS_OUT: Mapping[str, str] = {
    "data": "evaluate them on the same tokens (evaluate RUN --data FOLDER), or train them on the same data",
    "text": "prepare the same text with each tokenizer, and train with trainer.eval_tokens=null and .eval_batches=null",
    "tokens": "train them with the same trainer.eval_tokens and without trainer.eval_batches, whose tokens depend on "
    "data.batch_size",
    "weights": "train them with the same data.weights",
    "block_size": "train them with the same data.block_size, because a longer context alone lowers the loss",
    "changed": "compare at a step (--at-step N) on one side of the change",
}


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


@dataclass
class MeasuredAlike:
    """Runs whose values of a metric measure the same, with what is known of that."""

    runs: list[ComparedRun]
    measurement: Measurement
    aspects: dict[str, Any]

    def title(self, others: Sequence["MeasuredAlike"]) -> str:
        """Return in words how these runs differ from the other classes, such as `data.path=data/a`."""
        keys = {key for other in others for key in differing_aspects(self, other)}
        return ", ".join(_in_words(key, self) for key in WAYS_OUT if key in keys)


@dataclass(frozen=True)
class Measured:
    """The runs by what they measure.

    Attributes:
        metric: The metric to compare; another one than was asked for if only that measures the same.
        alike: The classes of runs, the one with the most runs first.
        notes: Remarks about what was converted, what cannot be compared, and what is not known.
    """

    metric: str
    alike: Sequence[MeasuredAlike]
    notes: Sequence[str]


def measured_alike(runs: Sequence[ComparedRun], metric: str, steps: Sequence[float] | None = None) -> Measured:
    """Sort runs by what their values of a metric measure.

    If only the tokenizers differ, losses per token become bits per byte of the same text.

    Args:
        runs: The runs.
        metric: The metric that is compared.
        steps: The steps of the values that are compared; None means all.
    """
    alike = _classes(runs, metric, steps)
    notes = []
    if metric in CONVERTIBLE and len(alike) > 1:
        converted = _classes(runs, BITS_PER_BYTE, steps)
        with_metric = [run for run in runs if len(run.series(metric)[0])]
        if len(converted) < len(alike) and all(len(run.series(BITS_PER_BYTE)[0]) for run in with_metric):
            notes.append(
                f"the tokenizers differ, and {metric} counts per token: compared in bits per byte of the same text "
                f"({BITS_PER_BYTE})"
            )
            metric, alike = BITS_PER_BYTE, converted
    alike.sort(key=lambda own: -len(own.runs))
    notes += [_no_verdict(alike[0], other, metric) for other in alike[1:]]
    notes += [*_unknown(runs, metric, steps), *_other_masks(runs, metric, steps)]
    return Measured(metric, alike, notes)


def measurement(run: ComparedRun, metric: str, steps: Sequence[float] | None = None) -> Measurement:
    """Return what a metric of a run measures at some steps (None: at all); all unknown if it is not a loss of text."""
    if metric.startswith("train/"):
        return Measurement(
            data=_text(_mapping(run.environment.get("data")).get("train")),
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


def differing_aspects(a: MeasuredAlike, b: MeasuredAlike) -> list[str]:
    """Return the names of the aspects that are known to differ."""
    return [
        key
        for key, value in a.aspects.items()
        if value != (other := b.aspects[key]) and ((value is not None and other is not None) or key == "changed")
    ]


def _classes(runs: Sequence[ComparedRun], metric: str, steps: Sequence[float] | None) -> list[MeasuredAlike]:
    """Return the runs in classes: two runs are together unless something is known to differ."""
    found = [(run, measurement(run, metric, steps)) for run in runs]
    text_of = {own.data: own.text for _, own in found if own.data and own.text}
    classes: list[MeasuredAlike] = []
    own = [MeasuredAlike([run], each, _aspects(each, metric, text_of)) for run, each in found]
    for one in sorted(own, key=lambda one: sum(value is None for value in one.aspects.values())):
        for known in classes:
            if not differing_aspects(known, one):
                known.runs += one.runs
                known.aspects |= {key: value for key, value in one.aspects.items() if known.aspects[key] is None}
                break
        else:
            classes.append(one)
    places = {id(run): place for place, run in enumerate(runs)}
    for known in classes:
        known.runs.sort(key=lambda run: places[id(run)])
    return sorted(classes, key=lambda known: places[id(known.runs[0])])


def _aspects(own: Measurement, metric: str, text_of: Mapping[str, str]) -> dict[str, Any]:
    """Return what must be equal for two values of a metric to be comparable, by name; None for what is not known."""
    what: dict[str, Any] = {"data": own.data}
    if metric == BITS_PER_BYTE and own.data and own.tokens == WHOLE_SPLIT:
        # A part of the split would be other text: blocks of equally many tokens of another tokenizer.
        what = {"text": text_of.get(own.data, own.data)}
    elif metric == BITS_PER_BYTE:
        what = {"text": own.data}
    return {
        **what,
        "tokens": own.tokens,
        "weights": own.weights,
        "block_size": own.block_size,
        "changed": own.changed,
    }


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
    keys = ("trainer.eval_batches", "trainer.eval_tokens") if split == "val" else ("trainer.eval_train_batches",)
    limits = [_count(run.config.get(key)) for key in keys]
    batch_tokens = (_count(run.config.get("data.batch_size")) or 0) * (block_size or 0)
    counts = [limit if key.endswith("tokens") else limit * batch_tokens for key, limit in zip(keys, limits, strict=True)
              if limit is not None]  # fmt: skip
    tokens: int | str | None = min(counts, default=0) or None
    if tokens is None and all(key in run.config for key in keys) and limits == [None] * len(limits):
        tokens = WHOLE_SPLIT
    return Measurement(
        data=_text(_mapping(run.environment.get("data")).get("val" if split == "val" else "train")),
        block_size=block_size,
        tokens=tokens,
        masked=_flag(run.config.get("model.mask_documents")),
    )


def _no_verdict(first: MeasuredAlike, other: MeasuredAlike, metric: str) -> str:
    keys = differing_aspects(first, other)
    way_out = WAYS_OUT[keys[0]]
    if keys[0] == "data" and metric in CONVERTIBLE and first.measurement.tokenizer != other.measurement.tokenizer:
        way_out = WAYS_OUT["text"] + f"; then {BITS_PER_BYTE} measures the same"
    by_name = keys[0] in ("tokens", "changed")  # the title does not tell which runs are meant
    sides = [
        f"{one.title([two])} ({names(one.runs) if by_name else counted(len(one.runs), 'run')})"
        for one, two in ((first, other), (other, first))
    ]
    return f"no verdict between {' and '.join(sides)}: their {metric} does not measure the same; {way_out}"


def _in_words(key: str, alike: MeasuredAlike) -> str:
    value, run = alike.aspects[key], alike.runs[0]
    match key:
        case "data" | "text":
            paths = [f"{name}={setting_text(path)}" for name, path in run.config.items()
                     if name == "data.path" or name.startswith("data.paths.")]  # fmt: skip
            return f"{' '.join(paths)} (tokens {str(value)[:8]})".strip()
        case "tokens":
            return f"an evaluation of the {value}" if value == WHOLE_SPLIT else f"an evaluation of {value:,} tokens"
        case "changed":
            return "a resume changed what it measures" if value else "one measurement"
    return f"data.{key}={printable(str(value))}"


def _unknown(runs: Sequence[ComparedRun], metric: str, steps: Sequence[float] | None) -> list[str]:
    """Return notes about runs of which something that matters is not recorded."""
    old = [(run, own) for run in runs if not (own := measurement(run, metric, steps)).recorded]
    notes = []
    if missing := [run for run, own in old if own.data is None or own.block_size is None]:
        notes.append(f"what they measured is not recorded: {names(missing)}; they are taken as comparable")
    if by_seed := [run for run, own in old if isinstance(own.tokens, int) and "trainer.eval_tokens" not in run.config]:
        notes.append(
            f"an older version evaluated each seed on another part of the split ({names(by_seed)}); the noise between "
            "seeds includes that"
        )
    return notes


def _other_masks(runs: Sequence[ComparedRun], metric: str, steps: Sequence[float] | None) -> list[str]:
    masked = {run.label: own for run in runs if (own := measurement(run, metric, steps).masked) is not None}
    if len(set(masked.values())) < 2:
        return []
    with_mask = [run for run in runs if masked.get(run.label)]
    return [
        f"with mask_documents, a token is predicted from its own document only: {names(with_mask)}; the others also "
        "see the documents before it"
    ]


def _weights(run: ComparedRun) -> str | None:
    weights = {key: value for key, value in run.config.items() if key.startswith("data.weights.")}
    return setting_text(hashable(weights)) if weights else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


def _count(value: Any) -> int | None:
    return int(value) if is_number(value) and 0 <= value < 2**63 else None


def _flag(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None
