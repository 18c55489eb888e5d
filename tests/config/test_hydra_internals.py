"""Tests that Hydra's private code still behaves as `lmtrain/config/hydra_internals.py` expects."""

import ast
import importlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn, JobStatus, run_job
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import OmegaConf

PACKAGE = Path(__file__).parents[2] / "lmtrain"

# Each name imported from `hydra._internal`, the parameters used here, and the feature that needs it.
BORROWED: dict[str, tuple[Sequence[str], str]] = {
    "hydra._internal.utils.get_args_parser": ((), "the flags of `python -m lmtrain` and of a fork"),
    "hydra._internal.callbacks.Callbacks": (("config",), "hydra.callbacks of a run"),
    "hydra._internal.config_loader_impl.ConfigLoaderImpl": (("config_search_path",), "the context of a run"),
    "hydra._internal.config_search_path_impl.ConfigSearchPathImpl": ((), "the context of a run"),
    "hydra._internal.utils.create_config_search_path": (("search_path_dir",), "what a saved run chose from groups"),
    "hydra._internal.config_repository.ConfigRepository": (
        ("config_search_path",),
        "what a saved run chose from groups",
    ),
    "hydra._internal.core_plugins.file_config_source.FileConfigSource": (
        ("provider", "path"),
        "config/experiments_source.py, which reads experiments/",
    ),
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper.split_arguments": (
        ("overrides", "max_batch_size"),
        "sweep/grid_sweeper.py, which makes jobs of swept values",
    ),
}


def find(name: str) -> Any:
    """Import a name from Hydra, which may be a method of a class."""
    module, _, attribute = name.rpartition(".")
    owner = find(module) if module.rpartition(".")[2][0].isupper() else importlib.import_module(module)
    return getattr(owner, attribute)


@pytest.mark.parametrize("name", BORROWED)
def test_every_private_name_exists_and_accepts_the_same_arguments(name: str) -> None:
    parameters, use = BORROWED[name]
    try:
        found = find(name)
    except (ImportError, AttributeError) as error:
        pytest.fail(f"Hydra has no {name} any more, which lmtrain needs for {use}: {error}")
    now = tuple(inspect.signature(found).parameters)
    assert now == tuple(parameters), f"{name} takes other arguments now; lmtrain uses it for {use}"


def test_the_list_above_is_complete() -> None:
    source = (PACKAGE / "config" / "hydra_internals.py").read_text()
    imported = {
        f"{node.module}.{alias.name}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("hydra._")
        for alias in node.names
    }
    assert {name.removesuffix(".split_arguments") for name in BORROWED} == imported


def test_flags_have_the_names_that_the_commands_use() -> None:
    from lmtrain.config.hydra_internals import parse_flags

    asking = ("help", "hydra_help", "cfg", "info", "shell_completion", "multirun", "resolve")
    others = ("config_dir", "config_name", "config_path", "experimental_rerun", "package")
    flags = vars(parse_flags(["seed=1", "-m"]))
    missing = {*asking, *others, "overrides"} - flags.keys()
    assert not missing, f"get_args_parser knows these no longer, which commands/train.py looks at: {missing}"
    assert flags["overrides"] == ["seed=1"]
    assert flags["multirun"] is True
    assert not any(flags[name] for name in asking if name != "multirun")


RECORDER = """
calls = []

class Recorder:
    def __getattr__(self, name):
        return lambda **_: calls.append(name)
"""


def test_run_job_uses_only_the_callbacks_of_its_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lmtrain.config.compose import compose
    from lmtrain.config.hydra_internals import context_of_one_run

    (tmp_path / "recorder.py").write_text(RECORDER)
    monkeypatch.syspath_prepend(tmp_path)
    callback = "+hydra.callbacks.recorder._target_=recorder.Recorder"
    composed = compose([f"hydra.run.dir={tmp_path / 'run'}", callback], with_hydra=True)
    context = context_of_one_run(composed)
    assert isinstance(context, HydraContext)
    context.callbacks.on_run_start(config=composed, config_name="config")
    job = run_job(lambda cfg: cfg.seed, composed, "hydra.run.dir", None, context)
    context.callbacks.on_run_end(config=composed, config_name="config", job_return=job)
    changed = "Callbacks of hydra._internal.callbacks no longer works as run/new_run.py needs it"
    calls = importlib.import_module("recorder").calls
    assert calls == ["on_run_start", "on_job_start", "on_job_end", "on_run_end"], changed
    assert job.return_value == composed.seed


def test_a_failed_job_keeps_its_exception() -> None:
    from lmtrain.config.hydra_internals import failure_of

    changed = "JobReturn._return_value is another thing now; the sweepers read a job's exception from it"
    error = ValueError("no")
    failed, completed = JobReturn(status=JobStatus.FAILED), JobReturn(status=JobStatus.COMPLETED)
    failed.return_value = error
    completed.return_value = 3.5
    assert failure_of(failed) is error, changed
    assert failure_of(completed) is None, changed
    with pytest.raises(ValueError, match="no"):
        _ = failed.return_value  # this is why the private attribute is read


@pytest.mark.parametrize(
    ("max_batch_size", "batches"),
    [
        (None, [[["a=1", "b=x"], ["a=1", "b=y"], ["a=2", "b=x"], ["a=2", "b=y"]]]),
        (3, [[["a=1", "b=x"], ["a=1", "b=y"], ["a=2", "b=x"]], [["a=2", "b=y"]]]),
    ],
)
def test_swept_values_become_jobs_in_order(max_batch_size: int | None, batches: list[list[list[str]]]) -> None:
    from lmtrain.config.hydra_internals import split_into_batches

    parsed = OverridesParser.create().parse_overrides(["a=1,2", "b=x,y"])
    changed = "BasicSweeper.split_arguments makes other jobs now; sweep/grid_sweeper.py relies on their order"
    assert split_into_batches(parsed, max_batch_size) == batches, changed


def test_a_folder_is_read_as_a_config_source(tmp_path: Path) -> None:
    from lmtrain.config.hydra_internals import folder_source

    (tmp_path / "group").mkdir()
    (tmp_path / "one.yaml").write_text("# @package _global_\na: 1\n")
    source = folder_source("someone", tmp_path)
    changed = "FileConfigSource reads folders in another way now; config/experiments_source.py hands everything to it"
    assert source.available(), changed
    assert source.is_group("group"), changed
    assert source.is_config("one"), changed
    assert source.list("", None) == ["group", "one"], changed
    loaded = source.load_config("one")
    assert loaded.config == {"a": 1}, changed
    assert loaded.header["package"] == "_global_", changed
    assert loaded.provider == "someone", changed


class Probe(Launcher):
    """A launcher that is created but never used."""

    def setup(self, **settings: Any) -> None:
        self.settings = settings

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise NotImplementedError


def test_hydra_accepts_a_class_of_lmtrain_as_an_installed_plugin() -> None:
    from lmtrain.config.hydra_internals import INSTALLED_AS, register_as_installed

    module = Probe.__module__
    register_as_installed(Probe)
    changed = "Hydra takes plugins from elsewhere now; sweep/plugins.py registers lmtrain's own as installed ones"
    assert Probe.__module__ == module
    assert Plugins.is_in_toplevel_plugins_module(f"{INSTALLED_AS}.Probe"), changed
    config = OmegaConf.create({"hydra": {"launcher": {"_target_": f"{INSTALLED_AS}.Probe"}}})
    context: Any = None
    made = Plugins.instance().instantiate_launcher(context, lambda cfg: None, config)
    assert type(made) is Probe, changed
