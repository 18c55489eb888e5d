"""Registers lmtrain's launchers and sweepers with Hydra."""

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from lmtrain.config.compose import set_up_hydra
from lmtrain.config.hydra_internals import register_as_installed
from lmtrain.sweep.grid_sweeper import GridSweeper
from lmtrain.sweep.job_directory import register_directory_resolver
from lmtrain.sweep.launcher import ProcessLauncher
from lmtrain.sweep.search.optuna_sweeper import OptunaSweeper
from lmtrain.sweep.slurm.launcher import SlurmLauncher


def register_plugins() -> None:
    """Register the launchers, the sweepers and the resolver for job directories.

    The call does nothing if they are already registered. Launchers such as joblib start processes in which Hydra
    discovers its plugins again; there they must be registered again.
    """
    set_up_hydra()
    register_directory_resolver()
    if GridSweeper in Plugins.instance().discover(Sweeper):
        return
    for plugin in (ProcessLauncher, SlurmLauncher, GridSweeper, OptunaSweeper):
        register_as_installed(plugin)
