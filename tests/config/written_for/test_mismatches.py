"""Tests that values of an experiment apply only to the optimizer, scheduler and model that can use them."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from support.command_line import Cli
from support.tokens import TINY

from lmtrain.config.compose import Composition, compose, compose_with_notes
from lmtrain.config.recorded.recompose import expand_fork
from lmtrain.errors import ConfigError
from lmtrain.run.new_run import new_run
from lmtrain.sweep.job_config import job_config

PARTS = """\
import torch

def lion(named_parameters, lr: float, weight_decay: float):
    return torch.optim.SGD([parameter for _, parameter in named_parameters], lr=lr, weight_decay=weight_decay)

def wsd(step: int, *, lr: float, warmup_steps: int, decay_steps: int) -> float:
    return lr

def short(n_layer: int, bias: bool = True):
    return torch.nn.Linear(n_layer, n_layer, bias=bias)

def free(**sizes: int):
    return torch.nn.Linear(1, 1)
"""
FILES = {
    "rates_parts.py": PARTS,
    "conf/optimizer/lion.yaml": "_target_: rates_parts.lion\nlr: 3e-4\nweight_decay: 0.5\n",
    "conf/scheduler/wsd.yaml": "_target_: rates_parts.wsd\n_partial_: true\nlr: ${optimizer.lr}\nwarmup_steps: 50\n"
    "decay_steps: 100\n",
    "conf/model/short.yaml": "_target_: rates_parts.short\nn_layer: 2\n",
    "conf/model/free.yaml": "_target_: rates_parts.free\n",
    "experiments/sized.yaml": "defaults:\n  - override /model: gpt2\nmodel: {n_layer: 3, bias: false, d_model: 60}\n",
    "experiments/outer.yaml": "defaults:\n  - adam\nscheduler: {warmup_steps: 30}\n",
    "experiments/own_wsd.yaml": "defaults:\n  - adam\n  - override /scheduler: wsd\nscheduler: {warmup_steps: 40}\n",
    "experiments/adam.yaml": "optimizer: {lr: 3e-3, betas: [0.9, 0.99]}\nscheduler: {warmup_steps: 20, min_lr: 1e-4}\n"
    "trainer: {max_steps: 400}\n",
    "experiments/with_lion.yaml": "defaults:\n  - override /optimizer: lion\noptimizer: {lr: 2e-5}\n",
    "experiments/adam_then_lion.yaml": "defaults:\n  - adam\n  - override /optimizer: lion\noptimizer: {lr: 1e-5}\n",
    "experiments/on_lion.yaml": "defaults:\n  - /experiments/with_lion\noptimizer: {weight_decay: 0.7}\n",
    "experiments/only_end.yaml": "scheduler: {min_lr: 1e-4}\n",
    "experiments/follows.yaml": "optimizer: {lr: 1e-3}\nscheduler: {min_lr: '${optimizer.lr}'}\n",
    "experiments/sweeps.yaml": "defaults:\n  - adam\nhydra:\n  sweeper:\n    params:\n      optimizer.lr: 1e-3,1e-2\n",
}
LION = {"lr": 3e-4, "weight_decay": 0.5}


@pytest.fixture(autouse=True)
def in_a_folder_with_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        header = "# @package _global_\n" if name.startswith("experiments") else ""
        (tmp_path / name).write_text(header + text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    sys.modules.pop("rates_parts", None)


def optimizer_of(composition: Composition) -> dict[str, object]:
    node = OmegaConf.to_container(composition.config.optimizer)
    assert isinstance(node, dict)
    return {str(key): value for key, value in node.items() if key != "_target_"}


def test_a_chosen_optimizer_keeps_its_own_values() -> None:
    taken = compose_with_notes(["experiments=adam", "optimizer=lion"])
    assert optimizer_of(taken) == LION
    assert taken.config.scheduler.min_lr == 6e-5  # cosine's own
    assert taken.config.scheduler.warmup_steps == 20
    assert taken.config.trainer.max_steps == 400
    assert taken.config.hydra.overrides.task == ["experiments=adam", "optimizer=lion"]
    assert taken.notes == [
        "experiments=adam: written for optimizer=adamw, not for lion; left out, so that values for lion apply: "
        "optimizer.lr=0.003, optimizer.betas=[0.9,0.99], scheduler.min_lr=0.0001; set one with optimizer.lr=VALUE"
    ]


@pytest.mark.parametrize(
    "overrides",
    [["experiments=adam"], ["experiments=adam", "optimizer=adamw"], ["experiments=adam", "scheduler=cosine"]],
)
def test_the_choices_for_which_an_experiment_was_written_get_its_values(overrides: list[str]) -> None:
    taken = compose_with_notes(overrides)
    assert (taken.config.optimizer.lr, taken.config.optimizer.betas) == (3e-3, [0.9, 0.99])
    assert taken.config.scheduler.min_lr == 1e-4
    assert not taken.notes


def test_a_name_may_have_its_suffix() -> None:
    plain = compose_with_notes(["experiments=adam"])
    for overrides in (["experiments=adam.yaml"], ["experiments=adam", "optimizer=adamw.yaml"]):
        taken = compose_with_notes(overrides)
        assert optimizer_of(taken) == optimizer_of(plain)
        assert list(taken.notes) == []
    taken = compose_with_notes(["experiments=adam.yaml", "optimizer=lion.yaml"])
    assert optimizer_of(taken) == LION
    assert "written for optimizer=adamw, not for lion;" in taken.notes[0]


def test_the_command_line_always_wins() -> None:
    taken = compose_with_notes(["experiments=adam", "optimizer=lion", "optimizer.lr=1e-5", "scheduler.min_lr=1e-6"])
    assert optimizer_of(taken) == {**LION, "lr": 1e-5}
    assert taken.config.scheduler.min_lr == 1e-6
    (note,) = taken.notes
    assert "apply: optimizer.betas=[0.9,0.99]; set one with optimizer.betas=VALUE" in note


def test_a_final_learning_rate_belongs_to_the_optimizer_even_if_it_is_the_only_value() -> None:
    assert compose(["experiments=only_end", "optimizer=lion"]).scheduler.min_lr == 6e-5
    assert compose(["experiments=only_end"]).scheduler.min_lr == 1e-4


def test_a_learning_rate_that_refers_to_the_optimizers_stays() -> None:
    taken = compose_with_notes(["experiments=follows", "optimizer=lion"])
    assert taken.config.scheduler.min_lr == LION["lr"]


def test_an_experiment_that_chooses_an_optimizer_is_written_for_it() -> None:
    assert optimizer_of(compose_with_notes(["experiments=with_lion"])) == {**LION, "lr": 2e-5}
    other_way_round = compose_with_notes(["experiments=with_lion", "optimizer=adamw"])
    assert other_way_round.config.optimizer.lr == 6e-4
    assert "written for optimizer=lion, not for adamw" in other_way_round.notes[0]


@pytest.mark.parametrize(
    ("choice", "values"),
    [
        (
            "adam_then_lion",
            {**LION, "lr": 1e-5},
        ),  # the outer experiment's, for lion; adam's betas would be unknown keys
        ("on_lion", {"lr": 2e-5, "weight_decay": 0.7}),  # both are for lion, although only one says so
        ("[adam,with_lion]", {**LION, "lr": 2e-5}),
    ],
)
def test_each_of_several_experiments_is_checked_separately(choice: str, values: dict[str, float]) -> None:
    taken = compose_with_notes([f"experiments={choice}"])
    assert optimizer_of(taken) == values
    assert [note.partition(":")[0] for note in taken.notes] == (["experiments=adam"] if "adam" in choice else [])
    assert compose_with_notes([f"experiments={choice}", "optimizer=adamw"]).config.optimizer.lr == (
        3e-3 if "adam" in choice else 6e-4
    )


def test_a_chosen_scheduler_gets_the_values_it_has_and_this_is_reported() -> None:
    taken = compose_with_notes(["experiments=adam", "scheduler=wsd"])
    scheduler = taken.config.scheduler
    assert (scheduler.warmup_steps, scheduler.decay_steps, "min_lr" in scheduler) == (20, 100, False)
    assert taken.config.optimizer.lr == 3e-3
    assert taken.notes == [
        "experiments=adam: written for scheduler=cosine, not for wsd; left out, because wsd has no such key: "
        "scheduler.min_lr=0.0001; kept, although found with cosine: optimizer.lr=0.003, scheduler.warmup_steps=20"
    ]


@pytest.mark.parametrize(
    ("choice", "kept"),
    [
        ("outer", "optimizer.lr=0.003, scheduler.warmup_steps=30"),
        ("[outer,adam]", "optimizer.lr=0.003, scheduler.warmup_steps=20"),
        ("[adam,outer]", "optimizer.lr=0.003, scheduler.warmup_steps=30"),
    ],
)
def test_a_value_that_another_experiment_replaced_is_not_named(choice: str, kept: str) -> None:
    (note,) = compose_with_notes([f"experiments={choice}", "scheduler=wsd"]).notes
    assert note.endswith(f"kept, although found with cosine: {kept}")


def test_a_value_that_an_experiment_for_the_choice_taken_replaced_is_not_named() -> None:
    (note,) = compose_with_notes(["experiments=own_wsd"]).notes
    assert "kept, although found with cosine: optimizer.lr=0.003" in note
    assert "warmup_steps" not in note
    (note,) = compose_with_notes(["experiments=adam_then_lion"]).notes
    assert "optimizer.betas=[0.9,0.99]" in note
    assert "optimizer.lr" not in note


@pytest.mark.parametrize(
    ("model", "values", "gone"),
    [
        ("decoder", {"n_layer": 3, "d_model": 60}, ["bias=false"]),
        ("transformers", {}, ["n_layer=3", "bias=false", "d_model=60"]),
        ("short", {"n_layer": 3, "bias": False}, ["d_model=60"]),  # the signature has a bias, the file does not
        ("free", {"n_layer": 3, "bias": False, "d_model": 60}, []),
    ],
)
def test_a_chosen_model_gets_the_values_it_has_and_the_others_are_named(
    model: str, values: dict[str, object], gone: list[str]
) -> None:
    taken = compose_with_notes(["experiments=sized", f"model={model}"])
    assert {key: taken.config.model.get(key) for key in values} == values
    assert not {text.partition("=")[0] for text in gone} & taken.config.model.keys()
    left = ", ".join(f"model.{text}" for text in gone)
    assert list(taken.notes) == (
        [
            f"experiments=sized: written for model=gpt2, not for {model}; "
            f"left out, because {model} has no such key: {left}"
        ]
        if gone
        else []
    )


def test_a_key_that_a_model_lacks_is_still_an_error_on_the_command_line() -> None:
    with pytest.raises(ConfigError, match=r"model\.bias=true: unknown key"):
        compose(["experiments=sized", "model=decoder", "model.bias=true"])


def test_search_ranges_for_another_optimizer_are_named() -> None:
    taken = compose_with_notes(["experiments=sweeps", "optimizer=lion"])
    assert taken.notes[0].startswith("experiments=sweeps and experiments=adam: ")
    assert taken.notes[0].endswith("its search ranges are also for adamw: optimizer.lr")


def test_jobs_of_a_sweep_are_composed_separately(token_folder: Path) -> None:
    common = (*TINY, f"data.path={token_folder}", "experiments=adam")
    lion = job_config((*common, "optimizer=lion"), (), None)
    adamw = job_config((*common, "optimizer=adamw"), (), None)
    assert (lion.config["optimizer"]["lr"], adamw.config["optimizer"]["lr"]) == (3e-4, 3e-3)
    assert (len(lion.notes), adamw.notes) == (1, [])


@pytest.fixture
def parent(token_folder: Path) -> Path:
    """Return the directory of a run with its own learning rate, as far as composing needs it."""
    rates = ["optimizer.lr=2e-3", "scheduler.min_lr=5e-4"]
    run = new_run([*TINY, f"data.path={token_folder}", "experiments=adam", *rates])
    directory = Path("parent")
    (directory / ".hydra").mkdir(parents=True)
    (directory / "config.yaml").write_text(OmegaConf.to_yaml(run.cfg), encoding="utf-8")
    for name, text in run.hydra_files.items():
        (directory / ".hydra" / name).write_text(text, encoding="utf-8")
    return directory


@pytest.mark.slow
def test_a_fork_drops_the_learning_rates_of_another_optimizer(parent: Path) -> None:
    taken = compose_with_notes(expand_fork([f"fork={parent}", "step=4", "optimizer=lion"]))
    assert optimizer_of(taken) == LION
    assert taken.config.scheduler.min_lr == 6e-5
    assert taken.config.trainer.max_steps == 12
    assert taken.notes[0].startswith("fork=parent and experiments=adam: written for optimizer=adamw, not for lion")
    assert "optimizer.lr=0.002" in taken.notes[0]
    recorded = taken.config.hydra.overrides.task  # a fork of this fork is composed from these
    assert optimizer_of(compose_with_notes(recorded)) == LION
    without = [
        text for text in recorded if not text.startswith("++fork")
    ]  # the start of the command line of a fork of this fork
    assert optimizer_of(compose_with_notes(without)) == LION


@pytest.mark.slow
@pytest.mark.parametrize("given", [[], ["optimizer=adamw"], ["optimizer.weight_decay=0.3"]])
def test_a_fork_with_the_same_optimizer_keeps_its_learning_rates(parent: Path, given: list[str]) -> None:
    taken = compose_with_notes(expand_fork([f"fork={parent}", "step=4", *given]))
    assert (taken.config.optimizer.lr, taken.config.scheduler.min_lr) == (2e-3, 5e-4)
    assert not taken.notes


@pytest.mark.slow
def test_a_sweep_over_optimizers_of_a_fork_keeps_the_values_of_each(parent: Path) -> None:
    swept = expand_fork(["-m", f"fork={parent}", "step=4", "optimizer=adamw,lion"])
    rates = {}
    for choice in ("adamw", "lion"):
        overrides = [text.replace("adamw,lion", choice) for text in swept if text != "-m"]
        rates[choice] = compose(overrides).optimizer.lr
    assert rates == {"adamw": 2e-3, "lion": 3e-4}


@pytest.mark.slow
def test_a_fork_with_another_scheduler_keeps_the_values_that_it_has(parent: Path) -> None:
    taken = compose_with_notes(expand_fork([f"fork={parent}", "step=4", "scheduler=wsd"]))
    assert (taken.config.scheduler.warmup_steps, taken.config.optimizer.lr) == (3, 2e-3)
    assert "min_lr" not in taken.config.scheduler


@pytest.mark.slow
def test_a_run_and_the_config_printed_by_hydra_are_composed_the_same(
    token_folder: Path, tmp_path: Path, cli: Cli
) -> None:
    mine = [*TINY, f"data.path={token_folder}", "experiments=adam", "optimizer=lion", "trainer.max_steps=1"]
    done = cli(*mine, "hydra.run.dir=run")
    assert done.returncode == 0, done.stderr
    assert "written for optimizer=adamw, not for lion" in done.stdout
    assert "written for optimizer=adamw, not for lion" in (tmp_path / "run" / "train.log").read_text(encoding="utf-8")
    assert OmegaConf.load(tmp_path / "run" / "config.yaml").optimizer.lr == 3e-4
    assert list(OmegaConf.load(tmp_path / "run" / ".hydra" / "overrides.yaml")) == mine
    again = cli("--rerun", "run", "hydra.run.dir=again")
    assert "identical to run: every digit" in again.stdout, again.stdout + again.stderr
    printed = cli("--cfg", "job", "--package", "optimizer", *mine)
    assert "lr: 0.0003" in printed.stdout
    assert "written for optimizer=adamw, not for lion" in printed.stderr
