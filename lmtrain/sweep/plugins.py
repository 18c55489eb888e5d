"""Makes lmtrain's launcher and sweepers known to Hydra, where a sweep needs them."""

from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper

from lmtrain.config.compose import set_up_hydra
from lmtrain.config.hydra_internals import register_as_installed
from lmtrain.sweep.grid_sweeper import GridSweeper
from lmtrain.sweep.job_directory import register_directory_resolver
from lmtrain.sweep.launcher import ProcessLauncher
from lmtrain.sweep.search.optuna_sweeper import OptunaSweeper


def register_plugins() -> None:
    """Register launcher, sweepers and the names of job directories; again only if Hydra has started its plugins anew.

    Hydra does so in every process that a launcher such as joblib starts.
    """
    set_up_hydra()
    register_directory_resolver()
    if GridSweeper in Plugins.instance().discover(Sweeper):
        return
    for plugin in (ProcessLauncher, GridSweeper, OptunaSweeper):
        register_as_installed(plugin)
