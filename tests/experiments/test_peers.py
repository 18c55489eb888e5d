"""The contest with other tools: processes that take turns, what is made of their times, and the pages that show it."""

import json
import sys
from pathlib import Path

import pytest

PEERS = Path(__file__).parents[2] / "experiments" / "peers"
sys.path.insert(0, str(PEERS))

import contest  # noqa: E402
import report  # noqa: E402
import run  # noqa: E402
from contest import Contender, Contest, curve_difference  # noqa: E402
from environments import MissingError, python_for  # noqa: E402
from settings import ENTRIES, Entry  # noqa: E402

FAKE = """
import sys, time
sys.path.insert(0, {contenders!r})
from turns import Turns, read_task
task = read_task()
ballast = b"x" * {ballast}
turns = Turns(parameters=7, dtype="float32", compiled=False)
for step in range(1, task.max_steps):
    time.sleep({seconds})
    if step == {fails_at}:
        sys.exit("no memory left")
    if step == 1 or step % task.log_interval == 0:
        turns.report(step, [1 / step])
"""


def fake(
    folder: Path, name: str, seconds: float = 0.01, fails_at: int | None = None, ballast: int = 0, steps: int = 2
) -> Contender:
    script = folder / f"{name}.py"
    values = {"contenders": str(PEERS / "contenders"), "seconds": seconds, "fails_at": fails_at, "ballast": ballast}
    script.write_text(FAKE.format(**values), encoding="utf-8")
    return Contender(name, Entry(name, str(script), "torch"), sys.executable, {"overrides": []}, folder, steps)


def test_contenders_take_turns_and_report_seconds_per_step(tmp_path: Path) -> None:
    contenders = {name: fake(tmp_path, name, seconds) for name, seconds in (("quick", 0.01), ("slow", 0.05))}
    played = Contest(contenders, guess_bytes=1)
    rounds = [played.play_round(number) for number in range(3)]
    played.close()
    assert [list(each) for each in rounds] == [["quick", "slow"], ["slow", "quick"], ["quick", "slow"]]
    assert all(each["quick"] >= 0.01 and each["slow"] >= 0.05 for each in rounds)
    assert min(each["slow"] for each in rounds) > min(each["quick"] for each in rounds)
    assert contenders["quick"].curve == {1: 1.0, 2: 1 / 2, 4: 1 / 4, 6: 1 / 6, 8: 1 / 8}  # two steps were the warmup
    assert contenders["quick"].facts["parameters"] == 7
    assert contenders["quick"].starts == 1
    assert not contenders["quick"].alive


def test_a_contender_that_fails_is_left_out_with_its_last_words(tmp_path: Path) -> None:
    played = Contest({name: fake(tmp_path, name, fails_at=at) for name, at in (("good", None), ("bad", 6))}, 1)
    rounds = [played.play_round(number) for number in range(3)]
    played.close()
    assert [set(each) for each in rounds] == [{"good", "bad"}, {"good"}, {"good"}]
    assert played.left_out["bad"].startswith("exit code 1: no memory left (see ")


def test_a_contender_that_does_not_answer_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contest, "PATIENCE_S", 0.5)
    played = Contest({"stuck": fake(tmp_path, "stuck", seconds=60)}, 1)
    assert played.play_round(0) == {}
    assert played.left_out["stuck"].startswith("no answer in 0.5 s: it printed nothing")


def test_a_contender_makes_room_and_is_started_again(tmp_path: Path) -> None:
    contenders = {
        "large": fake(tmp_path, "large", ballast=200 << 20),
        "small": fake(tmp_path, "small"),
        "middle": fake(tmp_path, "middle", ballast=100 << 20),
    }
    played = Contest(contenders, guess_bytes=50 << 20)
    played.capacity_bytes = 300 << 20
    rounds = [played.play_round(0), played.play_round(3)]
    played.close()
    assert [list(each) for each in rounds] == [["large", "small", "middle"]] * 2
    assert [each.starts for each in contenders.values()] == [1, 1, 2]  # in the second round, middle made room for large
    assert contenders["large"].peak_bytes > 200 << 20
    assert max(contenders["middle"].curve) == 4  # the second process repeats the losses of the first


@pytest.mark.parametrize(
    ("curve", "mean", "expected"),
    [
        ({1: 4.0, 3: 2.0}, False, 0.0),
        ({1: 4.0, 3: 2.2}, False, 0.1),
        ({1: 4.0, 3: 2.5}, True, 0.0),  # the mean of steps 2 and 3
        ({1: 4.0, 3: 2.0}, True, 0.2),
        ({1: 4.4, 9: 100.0}, False, 0.1),  # the base has no step 9
    ],
)
def test_losses_are_compared_at_the_same_steps(curve: dict[int, float], mean: bool, expected: float) -> None:
    assert curve_difference(curve, mean, {1: 4.0, 2: 3.0, 3: 2.0}) == pytest.approx(expected)


def test_a_tool_that_is_not_installed_is_named() -> None:
    with pytest.raises(MissingError, match="no_such_tool is not installed"):
        python_for(Entry("x", "x.py", "no_such_tool"), None)


RESULTS = {
    "title": "a model",
    "date": "2026-11-27",
    "base": "plain",
    "machine": {"gpu": None, "threads": 2, "cpu": "CPU", "python": "3.11.7"},
    "lmtrain": {"torch": "2.13.0"},
    "step_tokens": 100,
    "parameters": 1000,
    "steps_per_round": 5,
    "left_out": {"litgpt": "litgpt is not installed"},
    "rounds": [{"plain": 1.0, "lmtrain": 0.5}, {"plain": 2.0, "lmtrain": 1.2}, {"plain": 4.0, "lmtrain": 0.4}],
    "contenders": {
        name: {
            "label": ENTRIES[name].label,
            "dtype": "float32",
            "compiled": name == "lmtrain",
            "versions": {"torch": "2.13.0"},
            "peak_gb": 1.25,
            "parameters": 1000,
            "first_loss": 2.0,
            "last_loss": 1.0,
            "loss_difference": 1e-6,
        }
        for name in ("plain", "lmtrain")
    },
}


def test_ratios_are_medians_of_ratios_within_a_round() -> None:
    assert report.markdown(RESULTS).split("\n")[2:4] == [
        "| **lmtrain, defaults** | **float32, compiled** | **500.0** | **200** | **0.50** | **0.10–0.60** | **1.2** |",
        "| plain PyTorch loop | float32, eager | 2,000 | 50 | 1.00 | 1.00–1.00 | 1.2 |",
    ]
    assert report.markdown(RESULTS).endswith(
        "2026-11-27, CPU (2 threads), Python 3.11.7, torch 2.13.0. Medians of 3 rounds of 5 steps; ratios are to the "
        "plain PyTorch loop in float32. Left out: litgpt (litgpt is not installed)."
    )
    assert "| **lmtrain** | **0.50, 1.2 GB** |" in report.summary({"a": RESULTS})
    assert report.summary({}) == ""


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"parameters": 1100}, "lmtrain has +100 parameters"),
        ({"last_loss": 2.5}, "the loss of lmtrain went from 2.0000 to 2.5000"),
        ({"loss_difference": 0.1}, "losses of lmtrain differ from the plain loop's by 1.00e-01"),
        ({"versions": {"torch": "2.9.0"}}, "lmtrain has torch 2.9.0, lmtrain 2.13.0"),
    ],
)
def test_a_contender_that_does_other_work_is_reported(change: dict[str, object], problem: str) -> None:
    assert run.problems(RESULTS) == []
    contenders = RESULTS["contenders"]
    assert isinstance(contenders, dict)
    changed = {**contenders, "lmtrain": {**contenders["lmtrain"], **change}}
    assert run.problems({**RESULTS, "contenders": changed}) == [problem]


def test_the_pages_show_the_results() -> None:
    """If this fails, run `python experiments/peers/report.py`."""
    results = report.load()
    for page in report.PAGES:
        text = page.read_text(encoding="utf-8")
        assert "made by experiments/peers/report.py" in text
        assert report.fill(text, results) == text
    for name in results:
        assert all((report.RESULTS / f"{name}{ending}").is_file() for ending in (".csv", ".png"))


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    (tmp_path / "tiny.json").write_text(json.dumps(RESULTS), encoding="utf-8")
    report.write_pictures_and_tables(tmp_path)
    assert (tmp_path / "tiny.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "tiny.csv").read_text(encoding="utf-8").split("\n")[1].startswith("lmtrain,")


@pytest.mark.slow
def test_lmtrain_and_two_bare_loops_train_the_same(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["tiny", "--here", "--entries", "lmtrain,lmtrain-bare,plain", "--output", str(tmp_path)]
    assert run.main([*command, "--rounds", "1"]) == 0
    assert run.main([*command, "--rounds", "2", "--resume"]) == 0
    assert "WRONG" not in capsys.readouterr().out
    results = json.loads((tmp_path / "tiny.json").read_text(encoding="utf-8"))
    assert list(results["contenders"]) == ["lmtrain", "lmtrain-bare", "plain"]
    assert [set(each) for each in results["rounds"]] == [{"lmtrain", "lmtrain-bare", "plain"}] * 2
    for about in results["contenders"].values():
        assert about["parameters"] == results["parameters"]
        assert about["loss_difference"] < 1e-4
        assert about["last_loss"] < about["first_loss"]
