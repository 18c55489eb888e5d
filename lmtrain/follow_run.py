"""Trains as one of the processes of a run other than the first, which alone writes the run directory and the log."""

import logging
import sys
import traceback
from pathlib import Path

from omegaconf import DictConfig

from lmtrain.checkpoint.following import ReadOnlyFolder, following_recorder
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.batch_size import for_processes
from lmtrain.config.build import build, raising_config_errors
from lmtrain.errors import FAILED, ConfigError, DataError, InterruptedBySignal, LostRankError, ending_of
from lmtrain.loop.stop_request import StopRequest
from lmtrain.parallel.peers import Peers
from lmtrain.parts import build_parts, check_attention
from lmtrain.run.identity import plain_config
from lmtrain.run.start import load_start_together
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.redact import redact
from lmtrain.trainer import Trainer

ENDS_EVERYWHERE = (InterruptedBySignal, DataError, LostRankError)  # errors that the first process also has and reports


def follow(cfg: DictConfig, run_dir: Path, peers: Peers) -> int:
    """Train together with the first process of a run; return the exit code.

    An error of this process alone is printed in one line. The first process records it, with the traceback.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # the first process logs the same
    state = TrainState()
    with StopRequest() as stop:
        try:
            _train(cfg, run_dir, peers, state, stop)
        except BaseException as error:
            if not isinstance(error, ENDS_EVERYWHERE) and ending_of(error) == FAILED:
                reason = f"{type(error).__name__}: {error}"
                peers.fail(reason, "".join(traceback.format_exception(error)))
                sys.stderr.write(visible(redact(f"{peers.world}: {reason}")) + "\n")
            elif isinstance(error, ConfigError):
                peers.fail(str(error))
                raise
            return ending_of(error).exit_code
    return 0


def _train(cfg: DictConfig, run_dir: Path, peers: Peers, state: TrainState, stop: StopRequest) -> None:
    with raising_config_errors():
        cfg = for_processes(cfg, peers.world.size)
        parts = build_parts(cfg, peers=peers)
        check_attention(parts.model, parts.system)
        start = load_start_together(cfg, ReadOnlyFolder.of_run(run_dir), parts.parallel)
        vars(state).update(vars(start.state))
        recorder = following_recorder(run_dir, parts, stop, {"config": plain_config(cfg)})
        trainer: Trainer = build(cfg.trainer, parts, recorder, state)
        start.restore(trainer)
    if start.origin is not None:
        trainer.checkpoints.save(state)  # as the first process does
    del start
    trainer.fit()
    parts.parallel.close()
