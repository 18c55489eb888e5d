"""Tests of `average --steps`: which checkpoints it chooses, and what it says where it can't."""

import json
import re
from pathlib import Path

import pytest

from lmtrain.convert.chosen_checkpoints import ChosenCheckpoint, choose_checkpoints


def a_run(folder: Path, *steps: int, best: int | None = None) -> Path:
    for step in steps:
        (folder / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    if best is not None:
        (folder / "result.json").write_text(json.dumps({"best_step": best}))
    return folder


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ("100,300", [100, 300]),
        ("300,100", [300, 100]),
        ("150-400", [200, 300, 400]),
        ("last:2", [400, 500]),
        ("best,latest", [200, 500]),
        ("100, 100,100-200,best", [100, 200]),
    ],
)
def test_steps(tmp_path: Path, steps: str, expected: list[int]) -> None:
    run = a_run(tmp_path / "run", 100, 200, 300, 400, 500, best=200)
    chosen = choose_checkpoints([run], steps)
    assert [each.step for each in chosen] == expected
    assert all(each.path.is_dir() and each.weight == 1 for each in chosen)


def test_several_runs_give_their_best_checkpoints(tmp_path: Path) -> None:
    a, b, c = (a_run(tmp_path / name, 1, 2, 3, best=best) for name, best in (("a", 2), ("b", None), ("c", 7)))
    assert choose_checkpoints([a, b, c], None) == [
        ChosenCheckpoint(a, 2),
        ChosenCheckpoint(b, 3),
        ChosenCheckpoint(c, 3),
    ]
    assert choose_checkpoints([a, b], "1", [1, 2.5]) == [ChosenCheckpoint(a, 1, 1), ChosenCheckpoint(b, 1, 2.5)]


@pytest.mark.parametrize(
    ("steps", "weights", "message"),
    [
        (None, None, "run: say with --steps which checkpoints to average; it has 100, 200, 300"),
        (
            "250",
            None,
            "--steps 250: run has no checkpoint of this step; it has 100, 200, 300 (a run keeps a checkpoint",
        ),
        ("110-190", None, "--steps 110-190: run has no checkpoint in this range; it has 100"),
        ("last:4", None, "--steps last:4: run has only 3 checkpoints"),
        ("last:0", None, "--steps last:0: not understood"),
        ("200", None, "--steps 200: chooses only one checkpoint, run step 200, but an average needs two or more"),
        ("newest", None, "--steps newest: not understood; give steps (600,800), a range of steps (600-1000)"),
        ("100,200", [1.0], "--weights: 1 weight for 2 checkpoints (run step 100, run step 200); give one for each"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: str | None, weights: list[float] | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    run = a_run(Path("run"), 100, 200, 300)
    with pytest.raises(ValueError, match=f"^{re.escape(message)}[^\n]*$"):
        choose_checkpoints([run, run], steps, weights)
