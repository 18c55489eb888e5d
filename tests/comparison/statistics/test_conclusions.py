"""The verdicts say in plain words what the tests found, and refuse what these runs cannot show."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats
from support.synthetic_runs import write_run

from lmtrain.comparison.run_comparison import compare
from lmtrain.comparison.runs import load_runs
from lmtrain.comparison.statistics.conclusions import conclude
from lmtrain.comparison.statistics.group import ReplicateGroup
from lmtrain.comparison.statistics.noise.baseline import find_baseline
from lmtrain.comparison.statistics.noise.model import fit_noise
from lmtrain.comparison.statistics.significance import ALPHA
from lmtrain.comparison.statistics.wording.verdicts import luck

A = [6.0543, 6.0194, 5.9634, 5.8956, 5.9078]
B = [6.1648, 6.1868, 6.1211, 6.0780, 6.1416]
C = [6.0885, 6.2112, 6.0320, 6.1184, 6.2455]


def group(label: str, values: list[float], diverged: int = 0, missing: int = 0) -> ReplicateGroup:
    lost = tuple(range(100, 100 + diverged))
    return ReplicateGroup(
        label, {"lr": label}, dict(enumerate(values)), None, lost, {200 + n: "pruned" for n in range(missing)}
    )


def test_many_settings_have_a_headline_and_then_the_pairs() -> None:
    concluded = conclude([group("b", B), group("c", C), group("a", A)])
    assert concluded.sentences[:3] == [
        "the best of 3 settings is a",
        "a is better than b by 0.17 ± 0.11 (p = 0.0067, 5 seeds each)",
        "a is better than c by 0.17 ± 0.16 (p = 0.036, 5 seeds each)",
    ]
    assert concluded.sentences[-1] == (
        "± is a 95% interval and p is from Tukey's test (8 degrees of freedom), both corrected for all 3 pairs, or "
        "from the t-test of the pair alone, if that is less sure; equal seeds are paired (correlation 0.17)"
    )
    assert [one.label for one in concluded.among] == ["a"]
    assert concluded.method is not None
    assert (concluded.method.alpha, concluded.method.df, concluded.method.paired) == (0.05, 8, True)


def test_two_settings_need_no_headline() -> None:
    first, last = conclude([group("a", A), group("b", B)]).sentences
    assert first == "a is better than b by 0.17 ± 0.06 (p = 0.001, 5 seeds each)"
    assert last.startswith("± is a 95% interval and p is from a paired t-test (4 degrees of freedom); equal seeds")


def test_the_best_is_among_those_that_are_not_shown_to_be_worse() -> None:
    worst = [x + 1 for x in A]
    concluded = conclude(
        [group("a", A), group("b", [x + 0.001 * (-1) ** i for i, x in enumerate(A)]), group("c", worst)]
    )
    assert re.fullmatch(r"the best is among [ab] and [ab] \(95% confidence\); the other setting is not",
                        concluded.sentences[0])  # fmt: skip
    assert {one.label for one in concluded.among} == {"a", "b"}
    assert [one.verdict for one in concluded.comparisons] == ["undecided", "better"]
    same = conclude([group(label, [*generator]) for label, generator in zip("abcd", noise(4, 3), strict=True)])
    assert same.sentences[0] == "cannot tell which of the 4 settings is the best"


def noise(settings: int, seeds: int, seed: int = 0) -> list[list[float]]:
    return [list(row) for row in np.random.default_rng(seed).standard_normal((settings, seeds))]


def test_higher_is_better_for_some_metrics() -> None:
    first, *_ = conclude([group("a", A), group("b", B)], sign=-1).sentences
    assert first.startswith("b is better than a by 0.17")


def test_an_unclear_difference_is_not_called_one() -> None:
    first, *_ = conclude([group("b", B), group("c", C)]).sentences
    assert first == "cannot tell b and c apart: they differ by 0.00 ± 0.10 (p = 0.99, 5 seeds each)"


def test_one_seed_per_setting_is_no_evidence() -> None:
    (sentence,) = conclude([group("a", [3.0]), group("b", [2.0])]).sentences
    assert sentence.startswith("cannot tell b and a apart: b is ahead by 1, but with one seed each")


def test_the_verdict_on_a_single_run_says_what_it_assumes() -> None:
    first, *_ = conclude([group("a", A), group("b", [9.0])]).sentences
    assert ", if the noise of b is that of the others, which one run cannot show (p " in first
    assert first.startswith("a is better than b by ")


def test_the_mean_of_the_best_is_corrected_for_luck() -> None:
    concluded = conclude([group(str(n), values) for n, values in enumerate(noise(6, 3))])
    best = concluded.groups[0]
    assert concluded.on_new_seeds > best.mean
    (said,) = [text for text in concluded.sentences if "partly luck" in text]
    assert said.startswith(f"the mean of {best.label}, {best.mean:.2f}, is partly luck")
    assert said.endswith(f"expect about {concluded.on_new_seeds:.2f}")
    far = conclude([group("a", A), group("b", [x + 5 for x in B])])
    assert not any("luck" in text for text in far.sentences)


def test_seeds_that_change_nothing_are_a_defect_and_no_evidence() -> None:
    concluded = conclude([group("a", [3.0] * 3), group("b", [4.0] * 3)])
    assert concluded.sentences == [
        "no verdict: the seeds changed nothing: a and b each have the same value with every seed; is the seed used?"
    ]
    assert not concluded.comparisons
    one = conclude([group("a", [3.0] * 3), group("b", [4.0, 4.1, 4.05])])
    assert "the seeds changed nothing: a has the same value with every seed; is the seed used?" in one.sentences


def test_a_setting_of_which_all_runs_diverged_is_ranked_last() -> None:
    concluded = conclude([group("x", [], diverged=5), group("a", A), group("b", B)])
    assert [one.label for one in concluded.groups] == ["a", "b", "x"]
    assert concluded.sentences[2] == "a is better than x: all 5 runs of x diverged (p = 0.024, by ranks)"
    few = conclude([group("x", [], diverged=2), group("a", A[:2])])
    assert few.sentences[0] == "cannot tell a and x apart: all 2 runs of x diverged, but there are few runs (p = 0.33)"
    assert conclude([group("x", [], diverged=3)]).sentences == ["all runs diverged: there is nothing to compare"]


def test_diverged_runs_decide_by_their_ranks() -> None:
    concluded = conclude([group("a", A), group("b", B[:1], diverged=4)])
    (pair,) = concluded.comparisons
    assert (pair.verdict, pair.by_ranks) == ("better", True)
    assert pair.sentence.startswith("a is better than b: 4 of 5 runs of b diverged (p = 0.0")
    assert "; the survivors differ by 0.2" in pair.sentence


@pytest.mark.parametrize("lost", [{"diverged": 2}, {"missing": 2}])
def test_survivors_do_not_win(lost: dict[str, int]) -> None:
    worse = [group("b", B), group("a", [x - 1 for x in A[:3]], **lost)]
    concluded = conclude(worse)
    assert concluded.comparisons[0].verdict in ("none", "undecided")
    assert "is better" not in concluded.sentences[0]
    other_way = conclude([group("b", [x - 1 for x in B]), group("a", A[:3], **lost)])
    assert other_way.comparisons[0].verdict == "better"


def test_a_setting_that_mostly_diverges_is_not_ranked_first() -> None:
    concluded = conclude([group("a", [5.0, 5.1], diverged=3), group("b", B), group("c", C)])
    assert [one.label for one in concluded.groups][-1] == "a"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["diverged", "missing"])
def test_the_worst_two_of_five_seeds_of_one_setting_may_be_lost(kind: str) -> None:
    generator = np.random.default_rng(0)
    tables, wrong = 400, 0
    for _ in range(tables):
        first, *others = generator.standard_normal((3, 5))
        kept = sorted(first)[:3]
        groups = [
            group("a", kept, **{kind: 2}),
            *(group(label, list(o)) for label, o in zip("bc", others, strict=True)),
        ]
        wrong += any(one.verdict == "better" for one in conclude(groups).comparisons)
    assert wrong / tables < ALPHA + 3 * math.sqrt(ALPHA * (1 - ALPHA) / tables)


def test_a_margin_finds_settings_that_are_the_same() -> None:
    alike = [x + 0.002 * (-1) ** place for place, x in enumerate(A)]
    (same,) = conclude([group("a", A), group("b", alike)], margin=0.01).comparisons
    assert same.sentence.endswith("; they are the same within 0.01 (p = 0.0003)")
    differences = np.array(A) - np.array(alike)
    error = differences.std(ddof=1) / math.sqrt(5)
    assert same.p_same == pytest.approx(stats.t.sf((0.01 - abs(differences.mean())) / error, 4))
    unclear = conclude([group("b", B), group("c", C)], margin=0.01)
    assert unclear.sentences[0].endswith("; and they are not shown to be the same within 0.01")


def test_no_luck_is_taken_off_a_setting_that_lost_runs() -> None:
    """Its mean is that of the survivors; what to expect on new seeds is unknown."""
    close = [x + 0.01 * (-1) ** place for place, x in enumerate(A)]
    assert math.isfinite(conclude([group("a", A), group("b", close)]).on_new_seeds)
    for lost in ({"diverged": 1}, {"missing": 1}):
        concluded = conclude([group("a", A[:4], **lost), group("b", [x + 0.03 for x in close])])
        assert concluded.groups[0].label == "a"
        assert math.isnan(concluded.on_new_seeds)


def test_a_setting_that_changes_nothing_is_named() -> None:
    concluded = conclude([group("threads=1", A), group("threads=2", list(A))])
    assert concluded.sentences[0] == (
        "threads=1 and threads=2 are equal: they have the same value with each of 5 seeds, to the last bit; "
        "does this setting change anything?"
    )
    assert not any("luck" in text for text in concluded.sentences)


def test_differences_are_said_to_be_adjusted_where_a_seed_is_missing() -> None:
    shifted = [x + 0.01 * (-1) ** place + 0.1 for place, x in enumerate(A)]
    said = "differences are adjusted where a setting lacks a seed"
    assert conclude([group("a", A), group("b", shifted[:4])]).sentences[-1].endswith(said)
    assert said not in conclude([group("a", A), group("b", shifted)]).sentences[-1]


def test_two_seeds_get_a_warning_unless_equal_seeds_are_paired() -> None:
    few = "two seeds do not show whether one setting is noisier than another"

    def warned(*groups: ReplicateGroup) -> bool:
        return any(few in text for text in conclude(groups).sentences)

    shifted = [x + 0.3 + 0.01 * (-1) ** place for place, x in enumerate(A)]
    assert warned(group("a", A), replace(group("b", shifted[:2]), start="another"))
    assert warned(group("a", A[:2]), group("b", shifted[:2]), group("c", [A[1], A[0]]))
    assert not warned(group("a", A[:2]), group("b", shifted[:2]))
    assert not warned(group("a", A), replace(group("b", shifted), start="another"))


def test_a_small_sure_difference_is_better_and_yet_the_same_within_the_margin() -> None:
    slightly_worse = [x + 0.002 + 0.0001 * (-1) ** place for place, x in enumerate(A)]
    (found,) = conclude([group("a", A), group("b", slightly_worse)], margin=0.01).comparisons
    assert found.verdict == "better"
    assert "; but they are the same within 0.01 (p" in found.sentence


def test_with_diverged_runs_the_interval_excludes_zero_exactly_where_the_test_of_the_means_decides() -> None:
    generator = np.random.default_rng(0)
    decided = 0
    for shift in np.linspace(0.5, 4, 60):
        samples = generator.standard_normal((2, 6))
        concluded = conclude([group("a", list(samples[0])), group("b", list(samples[1] + shift), diverged=1)])
        (found,) = concluded.comparisons
        if not found.by_ranks:
            decided += found.p < ALPHA
            assert (abs(found.difference.value) > found.difference.half_width) == (found.p < ALPHA)
    assert decided > 10


def test_all_settings_are_compared_with_a_baseline() -> None:
    base = group("b", B)
    concluded = conclude([group("a", A), base, group("c", C)], baseline=base, margin=0.2)
    assert concluded.sentences[0] == "better than b: a; 0 of 2 settings are worse, and 1 cannot be told from it"
    assert [(one.other.label, one.verdict) for one in concluded.comparisons] == [("a", "worse"), ("c", "undecided")]
    assert concluded.sentences[1].startswith("a is better than b by 0.17")
    assert concluded.comparisons[1].p_no_worse < ALPHA
    assert concluded.method is not None
    assert concluded.method.test == "Dunnett's test"


def test_a_baseline_is_found_by_label_condition_or_folder(tmp_path: Path) -> None:
    for lr in (1e-3, 2e-3, 4e-3):
        for seed in (1, 2, 3):
            place = tmp_path / f"{lr}-{seed}"
            write_run(place, {"optimizer.lr": lr, "seed": seed}, final_loss=3 + 50 * lr + 0.01 * seed, log_interval=50)
    runs = load_runs([tmp_path])
    for text in ("lr=0.002", "lr=2e-3", "optimizer.lr=0.002", str(tmp_path / "0.002-2")):
        concluded = compare(runs, baseline=text).conclusions
        assert concluded.baseline is not None
        assert concluded.baseline.label == "lr=0.002"
        assert [one.verdict for one in concluded.comparisons] == ["worse", "better"]
    groups = concluded.groups
    for text in ("lr=5", "lr", "seed=1", "nowhere"):
        with pytest.raises(ValueError, match=r"no setting matches; give one of: lr=0\.001; lr=0\.002; lr=0\.004"):
            find_baseline(text, groups, runs)


def test_a_baseline_that_several_settings_meet_is_an_error() -> None:
    groups = [ReplicateGroup(f"lr={lr} wd={wd}", {"lr": lr, "wd": wd}, {1: 1.0}) for lr in (1, 2) for wd in (0, 1)]
    with pytest.raises(ValueError, match=r"--baseline 'lr=1': 2 settings match; give one of: lr=1 wd=0; lr=1 wd=1"):
        find_baseline("lr=1", groups, [])


def test_every_table_gets_sentences_that_say_what_its_verdicts_are() -> None:
    generator = np.random.default_rng(1)
    for _ in range(150):
        groups = []
        for place in range(generator.integers(1, 6)):
            values = generator.standard_normal(generator.integers(0, 4)) + 2 * place
            lost = {"diverged": int(generator.integers(0, 3)), "missing": int(generator.integers(0, 2))}
            groups.append(group(f"g{place}", list(map(float, values)), **lost))
        baseline = groups[0] if generator.random() < 0.3 else None
        concluded = conclude(groups, sign=int(generator.choice([-1, 1])), baseline=baseline, margin=0.5)
        assert concluded.sentences
        assert not any("nan" in text for text in concluded.sentences)
        for one in concluded.comparisons:
            assert (one.verdict in ("better", "worse")) == ("is better than" in one.sentence)


def test_without_any_noise_there_is_no_luck() -> None:
    equal = [ReplicateGroup(label, {"lr": label}, {1: 3.0, 2: 3.0}) for label in "ab"]
    model = fit_noise(equal)
    assert model is not None
    assert model.sd == 0
    assert luck(equal[0], 3.0, 3.0, model) == []
