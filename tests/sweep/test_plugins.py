"""Hydra knows lmtrain's launcher and sweepers only after they are registered."""

import subprocess
import sys
from pathlib import Path

import pytest

COMPOSES = """
import sys
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from omegaconf import OmegaConf
from lmtrain.config.compose import compose

def known():
    plugins = [*Plugins.instance().discover(Launcher), *Plugins.instance().discover(Sweeper)]
    return sorted(plugin.__name__ for plugin in plugins if plugin.__module__.startswith("lmtrain."))

compose(["hydra.sweep.dir=x"], with_hydra=True)
assert not known(), known()
assert not OmegaConf.has_resolver("job_directory")
assert not any(name.startswith("lmtrain.sweep") for name in sys.modules)
"""

REGISTERS = """
from lmtrain.sweep.plugins import register_plugins
for _ in range(2):
    register_plugins()
    assert known() == ["GridSweeper", "OptunaSweeper", "ProcessLauncher", "SlurmLauncher"], known()
subdir = compose(["seed=3"], with_hydra=True).hydra.sweep.subdir
assert subdir == "seed=3", subdir
from hydra.core.singleton import Singleton
Singleton.set_state(Singleton.get_state())  # as in the processes of joblib, submitit and Ray
assert not known()
register_plugins()
assert known() == ["GridSweeper", "OptunaSweeper", "ProcessLauncher", "SlurmLauncher"], known()
"""

IMPORTS = """
import warnings
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from omegaconf import OmegaConf
import lmtrain.sweep.task
assert not OmegaConf.has_resolver("run_id")
assert not OmegaConf.has_resolver("job_directory")
assert Plugins not in Singleton._instances
import contextlib, optuna, scipy.special  # SciPy adds a filter for its own warnings, and so does scikit-learn
with contextlib.suppress(ImportError):
    import sklearn.ensemble  # Optuna uses it where it is installed
level, before = optuna.logging.get_verbosity(), len(warnings.filters)
import lmtrain.sweep.search.study, lmtrain.sweep.search.report, lmtrain.sweep.search.trials
assert optuna.logging.get_verbosity() == level
assert len(warnings.filters) == before
"""


@pytest.mark.parametrize("script", [COMPOSES, COMPOSES + REGISTERS], ids=["compose", "register"])
def test_composing_registers_no_launcher_and_no_sweeper(script: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_importing_a_sweep_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    done = subprocess.run([sys.executable, "-c", IMPORTS], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
