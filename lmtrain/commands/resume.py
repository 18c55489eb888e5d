"""`python -m lmtrain resume=RUN_DIR [key=value …]`: continues a run in its own directory."""

from collections.abc import Sequence
from pathlib import Path

from lmtrain.run.resumed_run import resumed_run


def main(run_dir: Path, arguments: Sequence[str]) -> int:
    """Continue a run with its original config and the given changes; return the exit code.

    Raises:
        ConfigError: The run can't be resumed; see `resumed_run`.
    """
    again = resumed_run(run_dir, arguments)
    from lmtrain.run.provenance import Resume  # loads torch, which error messages need not wait for
    from lmtrain.train_run import run

    return run(again.cfg, again.directory, again.hydra_files, resumed=Resume(again.changes)).exit_code
