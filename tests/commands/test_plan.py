"""Tests of `python -m lmtrain plan` as a user runs it."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.command_line import Cli
from support.tokens import TINY, VOCAB_SIZE

PARAMETERS = VOCAB_SIZE * 32 + 2 * (4 * 32 * 32 + 3 * 32 * 64 + 2 * 32) + 32


def planned(cli: Cli, tmp_path: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
    done = cli("plan", *TINY, f"--json={tmp_path / 'plan.json'}", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "plan.json").read_text())


def test_a_plan_describes_the_run(cli: Cli, tmp_path: Path, token_folder: Path) -> None:
    text, numbers = planned(cli, tmp_path, f"data.path={token_folder}", "--price=36", "--mfu=0.5")
    assert numbers["parameters"]["total"] == PARAMETERS
    assert sum(numbers["parameters"].values()) == 2 * PARAMETERS
    assert numbers["tokens"] == {"step": 128, "run": 12 * 128, "per_parameter": 12 * 128 / PARAMETERS}
    assert numbers["epochs"] == {str(token_folder): pytest.approx(12 * 8 / 249)}
    flops = 6 * (PARAMETERS - 5 * 32) + 12 * 2 * 32 * 16
    assert numbers["flops"]["step"] == 128 * flops
    here = numbers["memory_bytes"]["here"]
    assert here["peak"] == sum(size for kind, size in here.items() if kind != "peak")
    assert numbers["memory_bytes"]["needed"] > here["peak"]
    assert numbers["disk_bytes"]["checkpoint"] == pytest.approx(3 * 4 * PARAMETERS, rel=0.01)
    # Checkpoints at steps 4, 8 and 12: two that are kept, the best, and one that is being written.
    assert numbers["disk_bytes"]["checkpoints"] == 4
    decayed, others = numbers["parameter_groups"]
    assert decayed == {
        "algorithm": "AdamW", "roles": ["embedding", "hidden"], "tensors": 15, "parameters": PARAMETERS - 5 * 32,
        "lr_scale": 1.0, "weight_decay": 0.1,
    }  # fmt: skip
    assert (others["tensors"], others["weight_decay"]) == (5, 0.0)
    assert f"  AdamW      embedding, hidden       15  {decayed['parameters']:>10,}     1           0.1\n" in text
    assert "python -m lmtrain prepare" not in text
    a100 = next(gpu for gpu in numbers["gpu_models"] if gpu["name"] == "A100")
    assert a100["bound_by"] == "launches"
    assert "launches: starting kernels" in text
    assert a100["fits"] is True
    assert 12 * 2 * 50 * 6e-6 < a100["seconds"] < 12 * 2 * 400 * 6e-6  # such a small model waits for kernel launches
    assert a100["dollars"] == pytest.approx(a100["seconds"] / 100)
    assert numbers["dollars"] == pytest.approx(numbers["seconds"]["run"] / 100)
    assert numbers["lr"][0] == [1, pytest.approx(6e-4 / 4)]
    assert len(numbers["lr"]) == 12
    assert numbers["measured"] is None
    assert f"{PARAMETERS:,}" in text
    assert "61% of" in text  # the share of the data that is never seen
    assert "┤" in text
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_measured_steps_replace_the_estimate(cli: Cli, tmp_path: Path, token_folder: Path) -> None:
    text, numbers = planned(cli, tmp_path, f"data.path={token_folder}", "--measure")
    assert numbers["measured"]["steps"] == 5
    assert numbers["seconds"]["step"] == numbers["measured"]["step_seconds"] > 0
    assert numbers["seconds"]["run"] == pytest.approx(12 * numbers["seconds"]["step"])
    assert "measured, median of 5 steps" in text
    assert {path.name for path in tmp_path.iterdir()} == {"data", "plan.json"}


@pytest.mark.slow
def test_without_token_files_the_rest_is_planned_and_nothing_prepared(cli: Cli, tmp_path: Path) -> None:
    text, numbers = planned(cli, tmp_path, "data=stdlib")
    assert numbers["missing_data"] == ["data.path=data/stdlib"]
    assert numbers["epochs"] is None
    assert numbers["memory_bytes"]["here"]["peak"] > 0
    assert numbers["parameters"]["embedding"] == 4096 * 32  # the size that prepare would aim for
    assert "has no token files yet; python -m lmtrain prepare makes them, with the same overrides" in text
    assert not (tmp_path / "data").exists()
    done = cli("plan", *TINY, "data.path=none", "model.vocab_size=61")
    assert "data.path=none has no token files, and this choice of data has no recipe to make them" in done.stdout
    refused = cli("plan", *TINY, "data=stdlib", "--measure")
    assert refused.returncode == 2
    assert "--measure: data.path=data/stdlib has no token files" in refused.stderr


@pytest.mark.slow
def test_a_fork_is_planned_from_its_checkpoint_on(cli: Cli, tmp_path: Path, token_folder: Path) -> None:
    origin = ["trainer.keep_every=4", "hydra.run.dir=runs/origin"]
    assert cli(*TINY, f"data.path={token_folder}", *origin).returncode == 0
    json_file = tmp_path / "plan.json"

    def plan(*arguments: str) -> tuple[str, dict[str, Any]]:
        done = cli("plan", "fork=runs/origin", f"--json={json_file}", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(json_file.read_text())

    text, numbers = plan("step=8", "trainer.max_steps=18", "optimizer.lr=1e-3")
    assert numbers["fork"] == {"run": "runs/origin", "step": 8, "tokens": 8 * 128}
    assert numbers["tokens"] == {"step": 128, "run": 10 * 128, "per_parameter": 18 * 128 / PARAMETERS}
    assert numbers["epochs"] == {str(token_folder): pytest.approx(18 * 8 / 249)}
    assert numbers["flops"]["run"] == 10 * numbers["flops"]["step"]
    assert numbers["seconds"]["run"] == pytest.approx(10 * numbers["seconds"]["step"])
    assert [step for step, _ in numbers["lr"]] == list(range(9, 19))
    assert "10 steps = 1.28k tokens, from step 8 of runs/origin (1.02k tokens) to 18" in text
    _, numbers = plan("seed=5", "trainer.max_steps=18")  # from its last checkpoint, with the data from the start
    assert numbers["fork"]["step"] == 12
    assert numbers["epochs"] == {str(token_folder): pytest.approx(6 * 8 / 249)}
    for arguments, message in (
        (["step=7"], "step=7: runs/origin has checkpoints of these steps: 4, 8, 12"),
        ([], "trainer.max_steps=12: the fork starts after step 12; give more"),
    ):
        refused = cli("plan", "fork=runs/origin", *arguments)
        assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
        assert message in refused.stderr


MODEL = """
from torch import nn

class Bigram(nn.Module):
    def __init__(self, vocab_size: int, peeks: bool = False):
        super().__init__()
        self.table, self.head, self.peeks = nn.Embedding(vocab_size, 8), nn.Linear(8, vocab_size), peeks

    def forward(self, tokens, targets=None):
        if self.peeks and tokens.sum().item() < 0:
            raise ValueError
        logits = self.head(self.table(tokens))
        return logits, None if targets is None else nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
"""


@pytest.mark.slow
def test_a_kind_of_attention_that_this_machine_lacks_leaves_the_memory_of_gpus_known(
    cli: Cli, tmp_path: Path, token_folder: Path
) -> None:
    own = (f"data.path={token_folder}", "system.device=cpu", "model.attention=efficient")
    text, numbers = planned(cli, tmp_path, *own)
    assert "unknown, because this machine refuses the run (model.attention=efficient: needs a CUDA device" in text
    assert numbers["memory_bytes"]["unknown_as"].startswith("this machine refuses the run")
    assert all(gpu["fits"] for gpu in numbers["gpu_models"])


@pytest.mark.slow
def test_the_plan_of_a_users_own_model(cli: Cli, tmp_path: Path, token_folder: Path) -> None:
    (tmp_path / "mymodels.py").write_text(MODEL)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf/model/bigram.yaml").write_text("_target_: mymodels.Bigram\nvocab_size: null\npeeks: false\n")
    common = [text for text in TINY if not text.startswith("model")]
    json_file = tmp_path / "plan.json"
    for peeks in ("false", "true"):
        done = cli(
            "plan", *common, "model=bigram", f"model.peeks={peeks}", f"data.path={token_folder}", f"--json={json_file}"
        )
        assert done.returncode == 0, done.stderr
        numbers = json.loads(json_file.read_text())
        assert numbers["parameters"] == {"total": 17 * 61, "embedding": 8 * 61, "head": 9 * 61}
        if peeks == "false":
            assert (
                numbers["flops"]["per_token"] == 6 * 8 * 61
            )  # counted FLOPs: an embedding lookup has no multiplications
            assert numbers["memory_bytes"]["here"]["weights"] == 4 * 17 * 61
        else:
            assert "local_scalar" in numbers["memory_bytes"]["unknown_as"]
            assert "unknown, because a step cannot be simulated" in done.stdout
            assert "are free (if the optimizer keeps as much as AdamW)" in done.stdout
            assert numbers["disk_bytes"]["from"] == "assuming the state of AdamW"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["trainer.max_stepz=5"], "did you mean trainer.max_steps?"),
        (["model.n_head=3"], "model.d_model=32: must be an even multiple of model.n_head=3"),
        (["model.block_size=8"], "data.block_size=16: longer than model.block_size=8"),
        (["resume=outputs/a"], "resume=outputs/a: plan takes the config of a new run"),
        (["--mfu=7"], "--mfu 7: must be above 0 and at most 1"),
        (["--json=nowhere/plan.json"], "--json nowhere/plan.json: the folder nowhere does not exist; create it first"),
        (["optimizer.lr=1e-3,3e-3"], "optimizer.lr=1e-3,3e-3: has several values; give one, or add -m to plan a sweep"),
        (
            ["-m", "--measure", "seed=1,2"],
            "--measure: times the steps of a single run; leave out either --measure or -m",
        ),
        (
            ["optimizer.rules=[{names: gone, lr_scale: 2}]"],
            "optimizer.rules: rule 1 (names: gone): matches no parameter of the model, which has such as",
        ),
        (["-m", "seed=1,x"], "seed=x: input should be a valid integer"),
        (["-m", "seed=interval(1, 5)"], "search the interval with hydra/sweeper=optuna"),
        (["fork=runs/none"], "fork=runs/none: no such run directory"),
    ],
)
def test_mistakes_in_the_config_are_errors(cli: Cli, token_folder: Path, arguments: list[str], message: str) -> None:
    done = cli("plan", *TINY, f"data.path={token_folder}", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_sweep_is_planned_per_job_and_in_total(cli: Cli, tmp_path: Path, token_folder: Path) -> None:
    swept = ["trainer.max_steps=12,24", "optimizer.lr=1e-3,3e-4", "seed=1,2,3"]
    text, numbers = planned(cli, tmp_path, "-m", f"data.path={token_folder}", "--price=36", *swept)
    total, plans = numbers["total"], [job["plan"] for job in numbers["jobs"]]
    assert total["jobs"] == len(plans) == 12
    values = [dict(text.split("=", 1) for text in job["overrides"]) for job in numbers["jobs"]]
    assert {(own["trainer.max_steps"], own["optimizer.lr"], own["seed"]) for own in values} == {
        (steps, lr, seed) for steps in ("12", "24") for lr in ("0.001", "0.0003") for seed in ("1", "2", "3")
    }
    assert total["tokens"] == 6 * (12 + 24) * 128
    for key, of_plan in (("seconds", ("seconds", "run")), ("disk_bytes", ("disk_bytes", "needed"))):
        assert total[key] == pytest.approx(sum(plan[of_plan[0]][of_plan[1]] for plan in plans))
    assert total["dollars"] == pytest.approx(total["seconds"] / 100)
    h100 = next(gpu for gpu in total["gpu_models"] if gpu["name"] == "H100")
    each = [gpu for plan in plans for gpu in plan["gpu_models"] if gpu["name"] == "H100"]
    assert h100["seconds"] == pytest.approx(sum(gpu["seconds"] for gpu in each))
    rows = [line.split()[:2] for line in text.splitlines() if line.startswith("  trainer.max_steps=")]
    assert rows == [["trainer.max_steps=12", "6"], ["trainer.max_steps=24", "6"]]  # jobs of the same size share a row
    assert "12 jobs of lmtrain" in text
    assert "(6 of 12 jobs)" in text  # the remark about data that is never seen
    assert {path.name for path in tmp_path.iterdir()} == {"data", "plan.json"}


@pytest.mark.slow
def test_sweeps_of_experiments_and_of_forks_and_searches_are_planned(
    cli: Cli, tmp_path: Path, token_folder: Path
) -> None:
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.yaml").write_text(
        "# @package _global_\nhydra:\n  sweeper:\n    params:\n      seed: range(1, 4)\n      model.d_model: 32,64\n"
        "  launcher:\n    n_jobs: 3\n"
    )
    own = [text for text in TINY if not text.startswith("model.d_model")]
    json_file = tmp_path / "plan.json"

    def plan(*arguments: str) -> tuple[str, dict[str, Any]]:
        done = cli("plan", "-m", f"--json={json_file}", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout, json.loads(json_file.read_text())["total"]

    text, total = plan(*own, f"data.path={token_folder}", "experiments=mine")
    assert (total["jobs"], total["at_once"]) == (6, 3)
    assert "3 at once (hydra.launcher.n_jobs)" in text
    assert plan(*own, f"data.path={token_folder}", "experiments=mine", "seed=7")[1]["jobs"] == 2
    _, total = plan(*TINY, f"data.path={token_folder}", "hydra/sweeper=optuna", "optimizer.lr=interval(1e-4, 1e-2)")
    assert (total["jobs"], total["tokens"]) == (20, 20 * 12 * 128)
    assert cli(*TINY, f"data.path={token_folder}", "hydra.run.dir=origin").returncode == 0
    _, total = plan("fork=origin", "step=8,12", "seed=1,2", "trainer.max_steps=20")
    assert (total["jobs"], total["tokens"]) == (4, 2 * (12 + 8) * 128)


def test_warnings_from_torch_are_hidden_and_those_from_user_code_are_shown(
    cli: Cli, tmp_path: Path, token_folder: Path
) -> None:
    (tmp_path / "mymodels.py").write_text(
        f"import warnings\n{MODEL}".replace(
            "        logits =", "        warnings.warn('of my own')\n        logits ="
        ).replace(
            "super().__init__()", "super().__init__(); nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 1), 1)"
        )
    )
    common = [text for text in TINY if not text.startswith("model")]
    model = ["~model", "+model={_target_:mymodels.Bigram,vocab_size:61}"]
    done = cli("plan", *common, *model, f"data.path={token_folder}")
    assert done.returncode == 0, done.stderr
    assert "of my own" in done.stderr
    assert "enable_nested_tensor" not in done.stdout + done.stderr


def test_training_warns_of_a_warmup_that_never_ends(cli: Cli, token_folder: Path) -> None:
    done = cli(*TINY, f"data.path={token_folder}", "trainer.max_steps=2", "scheduler.warmup_steps=50")
    assert done.returncode == 0
    assert "scheduler.warmup_steps=50: the run ends after 2 steps" in done.stdout
