"""Tells which runs have losses that measure the same, so that a verdict about them means something."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.labels import setting_text
from lmtrain.comparison.measurement import WHOLE_SPLIT, Measurement, measurement
from lmtrain.comparison.notes import names, without_seed
from lmtrain.terminal.as_text import first_few, printable
from lmtrain.terminal.units import counted

BITS_PER_BYTE = "val/bits_per_byte"
CONVERTIBLE = ("val/loss", "val/perplexity")  # they count per token, so another tokenizer changes what they mean
NAMED = 3  # settings of a class in a sentence
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
class MeasuredClasses:
    """The runs by what they measure.

    Attributes:
        metric: The metric to compare; another one than was asked for if only that measures the same.
        alike: The classes of runs, the one with the most runs first.
        refusals: For classes without a verdict between them, why there is none, and the way out.
        notes: Remarks about what was converted and what is not known.
    """

    metric: str
    alike: Sequence[MeasuredAlike]
    refusals: Sequence[str]
    notes: Sequence[str]


def measured_alike(runs: Sequence[ComparedRun], metric: str, steps: Sequence[float] | None = None) -> MeasuredClasses:
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
    notes += [*_unknown(runs, metric, steps), *_other_masks(runs, metric, steps)]
    return MeasuredClasses(metric, alike, _refusals(alike, metric), notes)


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


def _refusals(alike: Sequence[MeasuredAlike], metric: str) -> list[str]:
    """Return a sentence for all classes that differ from the first one in the same aspects."""
    by_aspects: dict[tuple[str, ...], list[MeasuredAlike]] = {}
    for other in alike[1:]:
        by_aspects.setdefault(tuple(differing_aspects(alike[0], other)), []).append(other)
    return [_no_verdict([alike[0], *others], aspects[0], metric) for aspects, others in by_aspects.items()]


def _no_verdict(alike: Sequence[MeasuredAlike], aspect: str, metric: str) -> str:
    way_out = WAYS_OUT[aspect]
    tokenizers = {own.measurement.tokenizer for own in alike}
    if aspect == "data" and metric in CONVERTIBLE and len(tokenizers) > 1:
        way_out = WAYS_OUT["text"] + f"; then {BITS_PER_BYTE} measures the same"
    by_name = aspect == "tokens"  # the title does not tell which runs are meant
    sides = [
        f"{own.title([other for other in alike if other is not own])} "
        f"({_settings(own.runs) if by_name else counted(len(own.runs), 'run')})"
        for own in alike
    ]
    between = ", ".join(sides[:-1]) + f" and {sides[-1]}"
    return f"no verdict between {between}: their {metric} does not measure the same; {way_out}"


def _settings(runs: Sequence[ComparedRun]) -> str:
    return first_few(dict.fromkeys(without_seed(run.label) for run in runs), NAMED, separator="; ")


def _in_words(key: str, alike: MeasuredAlike) -> str:
    value, run = alike.aspects[key], alike.runs[0]
    match key:
        case "data" | "text":
            keys = [key for key in run.config if key == "data.path" or key.startswith("data.paths.")]
            paths = " ".join(f"{key}={setting_text(run.config[key])}" for key in keys)
            return f"{paths} (tokens {str(value)[:8]})".strip()
        case "tokens":
            return f"an evaluation of the {value}" if value == WHOLE_SPLIT else f"an evaluation of {value:,} tokens"
        case "changed":
            return f"{run.label}, of which a resume changed what it measures" if value else "one measurement"
    return f"data.{key}={printable(str(value))}"


def _unknown(runs: Sequence[ComparedRun], metric: str, steps: Sequence[float] | None) -> list[str]:
    """Return notes about runs of which something that matters is not recorded."""
    old = [(run, own) for run in runs if not (own := measurement(run, metric, steps)).recorded]
    notes = []
    if missing := [run for run, own in old if own.data is None or own.block_size is None]:
        notes.append(
            f"not all of what they measured is recorded: {names(missing)}; what is unknown is taken to be the same"
        )
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
