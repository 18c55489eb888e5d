"""A trunk and its decayed branches are one family, and only runs that end alike get a verdict."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from support.command_line import Cli
from support.synthetic_families import TRUNK, WSD, write_branch, write_trunk, write_two_families
from support.synthetic_runs import STEP_TOKENS, write_run
from support.tokens import TINY, write_tokens

from lmtrain.comparison.lineage.families import below_their_trunk, families, in_family_order, joined_to_trunks
from lmtrain.comparison.output.text_files import as_json
from lmtrain.comparison.run_comparison import RunComparison, compare
from lmtrain.comparison.runs import ComparedRun, load_runs


@pytest.fixture
def two_families(tmp_path: Path) -> list[ComparedRun]:
    return load_runs([write_two_families(tmp_path)])


def names(runs: Sequence[ComparedRun]) -> list[str]:
    return [run.path.name for run in runs]


def verdicts(comparison: RunComparison) -> Mapping[str, list[str]]:
    """Return the settings that each class compares."""
    return {title: [group.label for group in conclusions.groups] for title, conclusions in comparison.classes}


def test_families_are_found(two_families: list[ComparedRun]) -> None:
    found = families(two_families)
    assert [names(family.members) for family in found] == [
        [name, f"{name}-100-50", f"{name}-200-50"] for name in ("low-1", "low-2", "more-1", "more-2")
    ]
    assert [family.trunk for family in found] == ["low-1", "low-2", "more-1", "more-2"]


def test_the_order_of_families_is_that_of_their_first_runs(two_families: list[ComparedRun]) -> None:
    by_name = {run.path.name: run for run in two_families}
    mixed = [by_name[name] for name in ("more-1-200-50", "low-1", "more-1-100-50", "more-1", "low-1-100-50")]
    ordered = in_family_order(mixed)
    assert names(ordered) == ["more-1", "more-1-100-50", "more-1-200-50", "low-1", "low-1-100-50"]
    assert below_their_trunk(ordered) == {1, 2, 4}
    assert below_their_trunk(mixed) == set()


def test_branches_are_compared_with_branches_of_the_same_end(two_families: list[ComparedRun]) -> None:
    comparison = compare(two_families)
    assert comparison.value_kind == "final"
    rates = ["lr=0.003", "lr=0.01"]
    assert verdicts(comparison) == {
        f"decayed by step 250, {250 * STEP_TOKENS // 1000}k tokens": rates,
        f"decayed by step 150, {round(150 * STEP_TOKENS / 1000)}k tokens": rates,
        "without a decay": rates[::-1],
    }
    first, *_ = comparison.conclusions.sentences
    assert first.startswith("no verdict between runs that decayed at different places or not at all")
    for _, conclusions in comparison.classes:
        assert all(list(group.values) == [1, 2] for group in conclusions.groups)
    assert not any("different budgets" in note.text for note in comparison.notes)
    assert math.isnan(comparison.goal)


def test_a_run_of_its_own_length_is_a_competitor_of_the_branch_that_ends_with_it(
    two_families: list[ComparedRun], tmp_path: Path
) -> None:
    for seed in (1, 2):
        write_run(tmp_path / f"cosine-{seed}", {"seed": seed}, steps=150, final_loss=3.0 + 0.01 * seed)
    runs = load_runs([tmp_path])
    (shorter,) = [labels for title, labels in verdicts(compare(runs)).items() if "step 150" in title]
    assert len(shorter) == 3
    assert sum("scheduler=cosine" in label for label in shorter) == 1


def test_a_diverged_branch_stays_with_its_replicates(tmp_path: Path) -> None:
    for seed in (1, 2):
        trunk = write_trunk(tmp_path / f"t{seed}", seed)
        write_branch(trunk, 100, 3.0, status="completed" if seed == 1 else "diverged")
    (group,) = compare(load_runs([tmp_path])).classes[0][1].groups
    assert (list(group.values), group.diverged) == ([1], (2,))


def test_at_a_step_of_ones_own_choice_the_verdict_names_the_trunk(two_families: list[ComparedRun]) -> None:
    comparison = compare(two_families, at_step=150)
    assert comparison.value_kind == "at-step"
    verdict = comparison.conclusions.comparisons[0].sentence
    assert verdict.startswith("with a trunk that has not decayed: ")
    refused = compare(two_families, value="at-tokens")
    assert refused.conclusions.sentences[0].startswith("no verdict: ")
    assert "--value final compares branches" in refused.conclusions.sentences[0]


@pytest.mark.parametrize(
    ("of_trunk", "of_fork"),
    [
        (TRUNK, {**WSD, "scheduler.decay_steps": 0, "optimizer.lr": 1e-4}),  # goes on with another rate
        ({}, {"optimizer.lr": 1e-4}),  # the trunk is a cosine, which has an end of its own
    ],
)
def test_other_forks_are_compared_with_their_parent_as_before(
    tmp_path: Path, of_trunk: dict[str, Any], of_fork: dict[str, Any]
) -> None:
    trunk = write_run(tmp_path / "trunk", {**of_trunk, "seed": 1})
    write_branch(trunk, 100, 3.0, decay=100, changes={**yaml_schedule(trunk), **of_fork})
    comparison = compare(load_runs([tmp_path]))
    assert not comparison.families
    assert (comparison.value_kind, len(comparison.classes)) == ("at-step", 1)


def yaml_schedule(run: Path) -> dict[str, Any]:
    """Return the schedule of a run, as a fork without changes keeps it."""
    schedule = yaml.safe_load((run / "config.yaml").read_text())["scheduler"]
    return {f"scheduler.{key}": value for key, value in schedule.items()}


def test_branches_of_a_lost_trunk_are_a_family(tmp_path: Path) -> None:
    trunk = write_trunk(tmp_path / "away" / "trunk", 1)
    folders = [write_branch(trunk, step, 3.0) for step in (200, 100)]
    (family,) = families(load_runs(folders))
    assert (family.trunks, names(family.branches)) == ([], ["trunk-100-50", "trunk-200-50"])


def test_the_curve_of_a_branch_begins_at_its_trunk(two_families: list[ComparedRun]) -> None:
    by_name = {run.path.name: run for run in joined_to_trunks(two_families)}
    steps, losses = by_name["more-1-100-50"].series("val/loss")
    trunk_steps, trunk_losses = by_name["more-1"].series("val/loss")
    assert steps.tolist() == [100, 150]
    assert losses[0] == trunk_losses[trunk_steps == 100][0]
    assert by_name["more-1-100-50"].metrics["tokens"][0] == 100 * STEP_TOKENS
    assert np.isfinite(by_name["more-1-100-50"].metrics["flops"][0])


def test_json_has_the_families(two_families: list[ComparedRun]) -> None:
    first, *_ = json.loads(as_json(compare(two_families)))["families"]
    assert first == {
        "trunk": "low-1",
        "trunks": [two_families[0].label],
        "branches": [
            {"label": run.label, "step": step, "steps": step + 50}
            for run, step in zip(two_families[1:3], (100, 200), strict=True)
        ],
    }


@pytest.mark.slow
def test_a_real_trunk_and_its_branches(tmp_path: Path, cli: Cli) -> None:
    write_tokens(tmp_path / "data" / "tiny")
    wsd = ["scheduler=wsd", "scheduler.decay_steps=0", "trainer.keep_every=4", "data.path=data/tiny"]
    assert cli(*TINY, *wsd, "hydra.run.dir=outputs/trunk").returncode == 0
    for step in (8, 4):
        fork = ("fork=outputs/trunk", f"step={step}", "scheduler=wsd", "scheduler.decay_steps=4")
        assert cli(*fork, f"hydra.run.dir=outputs/a{step}").returncode == 0
    shown = cli("compare", "outputs", "--columns", "run,branch_step,steps,tokens", "--json", "families.json")
    assert shown.returncode == 0, shown.stderr
    table = [line.split() for line in shown.stdout.splitlines()]
    assert [words for words in table if words[:1] in (["trunk"], ["└"])] == [
        ["trunk", "–", "12", "1.54k"],
        ["└", "a4", "4", "8", "1.02k"],
        ["└", "a8", "8", "12", "1.54k"],
    ]
    assert "no verdict between runs that decayed at different places" in shown.stdout
    (family,) = json.loads((tmp_path / "families.json").read_text())["families"]
    assert [branch["step"] for branch in family["branches"]] == [4, 8]


def test_a_strange_schedule_or_length_is_no_error(tmp_path: Path) -> None:
    trunk = write_trunk(tmp_path / "trunk", 1)
    write_branch(trunk, 100, 3.0, changes={"trainer.max_steps": 1e308}, status="interrupted")
    write_branch(trunk, 150, 3.0, changes={"scheduler._target_": ["lmtrain.scheduler.wsd"]})
    (family,) = compare(load_runs([tmp_path])).families
    assert names(family.branches) == ["trunk-100-50"]
