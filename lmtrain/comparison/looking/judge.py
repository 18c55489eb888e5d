"""Chooses the test that suits how often the results were looked at, and says so in one line."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from lmtrain.comparison.compared_run import ComparedRun
from lmtrain.comparison.looking.looks import Looks, Mode, looks_at
from lmtrain.comparison.looking.next_seed import command_for_missing, command_for_seeds, next_seed, settings_of
from lmtrain.comparison.looking.plan_sentences import plan_sentences
from lmtrain.comparison.looking.race import Race
from lmtrain.comparison.looking.sentences import looking_again
from lmtrain.comparison.statistics.conclusions import Conclusions
from lmtrain.comparison.statistics.group import ReplicateGroup

PLANNED = "planned: {reason}, so each p holds; if seeds are added later, compare changes to --again"
AGAIN = "again: {reason}, so the usual test would be too optimistic; --planned uses it all the same"
ASKED_PLANNED = (
    "planned, because of --planned: each p holds if the number of seeds was fixed before the first look{but}"
)
ASKED_AGAIN = "again, because of --again{but}"
ONE_LOOK = "the tests of each setting's effect and of --reach hold for one look, not for several"
UNKNOWN = (
    "{reason}, so it is not known whether the number of seeds was fixed before the first look; each p holds only if it "
    "was. If you added seeds after a look, use --again; to have it recorded, run all seeds in one sweep"
)


def judge(
    conclusions: Conclusions,
    runs: Sequence[ComparedRun],
    sign: int,
    asked: Mode | None = None,
    difference: float | None = None,
) -> tuple[Conclusions, Looks, list[str]]:
    """Return the conclusions that suit the number of looks, this number, and notes.

    Args:
        conclusions: Those of the usual test, which holds for one look.
        runs: All runs that are compared.
        sign: 1 if lower values are better, −1 if higher values are.
        asked: The mode to use; None means that of the sweep's files.
        difference: The difference for which to say how many seeds would detect it; None says nothing.
    """
    looks = looks_at(runs)
    forced = asked is not None and asked != looks.mode
    but = f", but {looks.reason}" if forced and looks.mode != "unknown" else ""
    looks = replace(looks, mode=asked or looks.mode)
    sentences, notes = list(conclusions.sentences), []
    groups = conclusions.groups
    if conclusions.comparisons:  # none of a single setting, of one seed each, or if there may be no verdict
        if looks.mode == "unknown":
            notes = [UNKNOWN.format(reason=looks.reason)]
        elif looks.mode == "planned":
            sentences += [ASKED_PLANNED.format(but=but) if forced else PLANNED.format(reason=looks.reason)]
        else:
            conclusions, race = looking_again(conclusions, sign)
            line = ASKED_AGAIN.format(but=but) if forced else AGAIN.format(reason=looks.reason)
            notes = [ONE_LOOK] if len(groups) > 1 and any(effect.test for effect in conclusions.effects.effects) else []
            sentences = [*conclusions.sentences, line, *_next_step(looks, race, runs)]
    if difference is not None:
        sentences += plan_sentences(groups, runs, difference, looks)
    return replace(conclusions, sentences=sentences), looks, notes


def _next_step(looks: Looks, race: Race, runs: Sequence[ComparedRun]) -> list[str]:
    """Return, in words, how to run what is missing or the next seed; empty if everything is decided."""
    if not race.more:
        return []
    if looks.missing and looks.sweep is not None:
        command = command_for_missing(looks.sweep, looks.missing)
        return [f"to run what is missing: {command}"] if command else []
    seeds = [_seeds(group) for group in race.more]
    if not all(isinstance(seed, int) for own in seeds for seed in own):
        return []
    if looks.sweep is not None:
        labels = {label for group in race.more for label in group.runs}
        settings = settings_of(looks.sweep, [run for run in runs if run.label in labels])
        if command := command_for_seeds(looks.sweep, settings, next_seed(seeds), looks.sweep):
            return [f"to add a seed: {command}"]
    return [f"the next seed: seed={next_seed(seeds)} of each"]


def _seeds(group: ReplicateGroup) -> frozenset[Any]:
    return frozenset({*group.values, *group.diverged, *group.missing})
