"""Training, without a verb: `python -m lmtrain [overrides]`, `-m` for a sweep."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from lmtrain.config import HYDRA_VERSION_BASE, ConfigError, compose, set_up_hydra, texts_for_hydra_folder, without_hydra
from lmtrain.interrupt import exit_code
from lmtrain.launcher import SweepFailedError, SweepStoppedError, search_path
from lmtrain.lineage import forked
from lmtrain.paths import shipped
from lmtrain.preflight import preflight, refuse_existing_run


def main(arguments: Sequence[str]) -> int:
    """Hands the command line to Hydra; the exit code of the run, or of the worst job of a sweep."""
    set_up_hydra()
    # Hydra prints errors its own way and leaves with 1; like this they come to us.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    arguments = forked(arguments)
    flags = get_args_parser().parse_args(list(arguments))
    asks = flags.help or flags.hydra_help or flags.cfg or flags.info
    if not asks and not flags.multirun:
        # Before Hydra makes a run directory: a mistake leaves nothing behind.
        composed = compose([*search_path(flags.config_dir), *flags.overrides], with_hydra=True)
        run_dir = Path(composed.hydra.run.dir)
        preflight(without_hydra(composed))
        refuse_existing_run(run_dir)
    exit_codes: list[int] = []

    def task(composed: DictConfig) -> float | None:
        cfg = preflight(composed)
        from lmtrain.train import run

        single = HydraConfig.get().mode is RunMode.RUN
        try:
            outcome = run(
                cfg,
                Path(HydraConfig.get().runtime.output_dir),
                texts_for_hydra_folder(composed, HydraConfig.get()),
            )
        except ConfigError as error:
            if not single:
                raise
            mistakes.append(error)
            return None
        exit_codes.append(outcome.exit_code)
        if outcome.exit_code and not single:
            raise RuntimeError(f"exit code {outcome.exit_code}")  # tells launchers that run jobs in this process
        return outcome.objective

    mistakes: list[ConfigError] = []
    sys.argv[1:] = arguments  # where Hydra reads them
    decorate: Any = hydra.main(version_base=HYDRA_VERSION_BASE, config_path=str(shipped("conf")), config_name="config")
    try:
        decorate(task)()
    except OSError as error:  # the run directory can't be made
        raise ConfigError(str(error)) from error
    except SweepFailedError:
        return 1
    except SweepStoppedError as stopped:
        return exit_code(stopped.number)
    if mistakes:
        raise mistakes[0]
    return max(exit_codes, default=0)
