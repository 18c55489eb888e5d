"""`decide` on runs that are already there: verdicts, exit codes, the ledger, and mistakes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.decided_runs import ledger_lines, tiny_baseline, write_idea

from lmtrain.commands import decide
from lmtrain.comparison.statistics.online_fdr import next_level
from lmtrain.comparison.statistics.sequential import log_e_value
from lmtrain.decide.campaign import known_curves
from lmtrain.decide.ledger import Ledger
from lmtrain.decide.pairs import Question
from lmtrain.errors import ConfigError
from lmtrain.files.lock import FileLock
from lmtrain.terminal.console import console

SEEDS = range(1, 6)
EASY = ["--level", "0.5", "--ideas", "1"]  # the first idea is kept with evidence of 4: three clear pairs
NOISE = dict(zip(SEEDS, np.random.default_rng(0).normal(0, 0.05, len(SEEDS)).round(4).tolist(), strict=True))


@pytest.fixture
def baseline(token_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(console, "stderr", False)
    return tiny_baseline(token_folder)


def run(capsys: pytest.CaptureFixture[str], baseline: list[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    code = decide.main(["--campaign", "campaign", "--json", "--baseline", *baseline, *EASY, *arguments])
    return code, json.loads(capsys.readouterr().out)


def losses(gain: float) -> dict[str, dict[int, float]]:
    """Return losses whose pairs differ by a gain, with noise of 0.01; the noise of a seed is in both."""
    own = np.random.default_rng(1).normal(0, 0.01, len(SEEDS))
    ours = {seed: 3 + NOISE[seed] for seed in SEEDS}
    return {"baseline": ours, "challenger": {seed: ours[seed] - gain + own[seed - 1] for seed in SEEDS}}


@pytest.mark.slow
def test_a_better_challenger_is_kept_and_the_ledger_says_so(
    baseline: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = losses(0.05)
    write_idea(baseline, ["optimizer.lr=1e-3"], tmp_path / "campaign", found)
    code, result = run(capsys, baseline, "--challenger", "optimizer.lr=1e-3", "--seeds", "5")
    assert code == 0
    assert (result["verdict"], result["reason"], result["number"]) == ("keep", "better", 1)
    assert result["level"] == pytest.approx(next_level(1, 0, level=0.5, planned=1))
    gains = [found["baseline"][seed] - found["challenger"][seed] for seed in result["seeds"]]
    assert [pair["gain"] for pair in result["pairs"]] == pytest.approx(gains)
    assert result["log_evidence"] == pytest.approx(log_e_value(gains))
    assert result["log_evidence"] >= -np.log(result["level"]) > log_e_value(gains[:-1])
    assert 0 < result["interval"][0] < result["gain"] < result["interval"][1]
    assert result["cost"]["tokens"] == 2 * len(gains) * 12 * 1024
    events = [line["event"] for line in ledger_lines(tmp_path / "campaign")]
    assert events == ["campaign", "started", "ended"]

    # The same command again changes nothing, and says the same.
    again = run(capsys, baseline, "--challenger", "optimizer.lr=1e-3", "--seeds", "5")
    assert again == (code, result)
    assert len(ledger_lines(tmp_path / "campaign")) == 3

    # The next idea shares the baseline's runs, and its level knows of the first.
    idea = write_idea(baseline, ["optimizer.lr=2e-3"], tmp_path / "campaign", losses(0.0))
    known = known_curves(Ledger(tmp_path / "campaign"), idea, Question())
    assert [curve.gains[-1] for curve in known] == pytest.approx(gains)
    code, result = run(capsys, baseline, "--challenger", "optimizer.lr=2e-3", "--seeds", "5")
    assert code == 10
    assert result["verdict"] == "drop"
    assert result["level"] == pytest.approx(next_level(2, 1, level=0.5, planned=1))
    assert len(list((tmp_path / "campaign" / "runs").iterdir())) == 3

    assert decide.main(["--campaign", "campaign", "--list", "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)
    assert ledger["verdicts"] == {"keep": 1, "drop": 1, "undecided": 0, "open": 0}
    used = {(side, seed) for idea in ledger["ideas"] for side in ("b", idea["key"]) for seed in idea["seeds"]}
    assert ledger["cost"]["runs"] == len(used)
    console.stderr = False
    assert decide.main(["--campaign", "campaign", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "optimizer.lr=1e-3" in shown
    assert "2 ideas: 1 keep, 1 drop; at most 50% of the kept ones are expected to be false" in shown


@pytest.mark.slow
def test_an_undecided_idea_goes_on_with_a_larger_budget_at_the_level_that_it_had(
    baseline: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_idea(baseline, ["optimizer.lr=1e-3"], tmp_path / "campaign", losses(0.018))
    arguments = ["--level", "0.2", "--challenger", "optimizer.lr=1e-3", "--seeds"]  # kept with evidence of 10
    first, again = (run(capsys, baseline, *arguments, "4") for _ in range(2))
    (lock,) = (tmp_path / "campaign").glob("runs/*/.decide-*.lock")
    with FileLock(lock), pytest.raises(ConfigError, match="another process is deciding this idea"):
        run(capsys, baseline, *arguments, "5")
    assert first == again
    assert first[0] == 11
    code, more = run(capsys, baseline, *arguments, "5")
    assert code == 0
    assert more["level"] == first[1]["level"]
    assert [line["event"] for line in ledger_lines(tmp_path / "campaign")] == ["campaign", "started", "ended", "ended"]


def test_a_budget_with_which_nothing_could_be_kept_is_refused(
    baseline: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ConfigError, match=r"--seeds 2: with so few pairs, .* give at least --seeds 3"):
        run(capsys, baseline, "--challenger", "optimizer.lr=1e-3", "--seeds", "2")


def test_mistakes_are_found_before_a_run_or_a_ledger(
    baseline: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for challenger, message in (
        (["seed=3"], "seed=3: decide runs every seed of both"),
        (["optimizer.lr=1,2"], "optimizer.lr=1,2: has several values"),
        (["hydra.run.dir=x"], "hydra.run.dir=x: belongs to training"),
        (["optimizer.lrr=1"], "did you mean optimizer.lr?"),
        (["name=other"], "gives the config of the baseline"),
        (
            ["data.block_size=8"],
            "data.block_size is 8 instead of 16, so that its val/loss would measure something else",
        ),
        (["trainer.eval_batches=null"], "trainer.eval_batches is None instead of 2"),
    ):
        with pytest.raises(ConfigError) as caught:
            run(capsys, baseline, "--challenger", *challenger)
        assert message in str(caught.value)
    with pytest.raises(ConfigError, match="--challenger: is missing"):
        decide.main(["--campaign", "campaign", "--baseline", "a=b"])
    with pytest.raises(ConfigError, match=r"has no decisions\.jsonl"):
        decide.main(["--campaign", "campaign", "--list"])
    assert not (tmp_path / "campaign").exists()
