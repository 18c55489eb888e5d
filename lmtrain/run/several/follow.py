"""Trains as one of the processes of a run other than the first, which alone writes the run directory and the log."""

import gc
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path

from omegaconf import DictConfig

from lmtrain.checkpoint.several.following import following_recorder
from lmtrain.checkpoint.several.sharded_folder import saver_of_other
from lmtrain.checkpoint.several.together import PATIENCE_S
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.config.batch_size import SIZE, for_processes, is_auto, with_batch_size
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.token_files import token_folders
from lmtrain.errors import (
    COMPLETED,
    ENDS_EVERYWHERE,
    INTERRUPTED,
    PRUNED,
    TERMINATED,
    Ending,
    LostRankError,
    ending_of,
)
from lmtrain.hardware.processes import close_connections, leave_the_others
from lmtrain.loop.stop_request import REPEAT_OF_SEVERAL_S, StopRequest
from lmtrain.parallel.peers import LAST_WORDS_S, Peers
from lmtrain.parallel.world import MASTER_PORT
from lmtrain.parts import build_parts, check_attention
from lmtrain.run.identity import plain_config
from lmtrain.run.several.chosen_parallel import with_chosen_parallel
from lmtrain.run.start import load_start
from lmtrain.terminal.as_text import visible
from lmtrain.terminal.console import log_to
from lmtrain.terminal.redact import redact
from lmtrain.trainer import Trainer

log = logging.getLogger(__name__)


# Loads the weights of a folder into a trainer, given the folders of the token files by their names in the config.
BeginWithWeights = Callable[[Trainer, Path, Mapping[str, Path]], object]


def follow(cfg: DictConfig, run_dir: Path, peers: Peers, begin_with_weights: BeginWithWeights) -> int:
    """Train together with the first process of a run; return the exit code.

    `begin_with_weights` is called if the run is new and has `init_from`, as in the first process.

    The first process reports an error of this process, with its traceback. If it has gone, the error is printed here.
    """
    logging.getLogger().addHandler(logging.NullHandler())  # the first process logs the same
    logging.captureWarnings(True)
    with StopRequest(repeat_s=REPEAT_OF_SEVERAL_S, announces=False) as stop:
        stop.defers = True  # several processes can stop only together, after their first step
        ending = _ending(cfg, run_dir, peers, stop, begin_with_weights)
        if ending is COMPLETED:
            peers.leave()
        elif ending in (TERMINATED, INTERRUPTED, PRUNED):
            peers.end()  # the first process writes the last checkpoint
        else:
            gc.collect()  # what is left of the run still holds the connections
            leave_the_others(at_once=True)  # so that they see at once that this process does not answer any more
            close_connections(keep_port=int(os.environ[MASTER_PORT]))
            peers.end(LAST_WORDS_S)
    return ending.exit_code


def _ending(
    cfg: DictConfig, run_dir: Path, peers: Peers, stop: StopRequest, begin_with_weights: BeginWithWeights
) -> Ending:
    """Train, and return how that ended."""
    try:
        _train(cfg, run_dir, peers, TrainState(), stop, begin_with_weights)
    except BaseException as error:
        log.info("ends", exc_info=True)  # seen only in a log of this process
        if not isinstance(error, ENDS_EVERYWHERE):
            reported = peers.fail(f"{type(error).__name__}: {error}", "".join(traceback.format_exception(error)))
            if not reported:
                sys.stderr.write(visible(redact(f"{peers.world}: {type(error).__name__}: {error}")) + "\n")
        elif isinstance(error, LostRankError) and error.unheard:
            sys.stderr.write(visible(redact(str(error))) + "\n")
        return ending_of(error)
    return COMPLETED


def _train(
    cfg: DictConfig,
    run_dir: Path,
    peers: Peers,
    state: TrainState,
    stop: StopRequest,
    begin_with_weights: BeginWithWeights,
) -> None:
    with raising_config_errors():
        _check_shared(run_dir, peers)
        if cfg.parallel.get("rank_logs"):
            log_to(run_dir / f"rank-{peers.world.rank}.log")
            log.info("%s, process %d", peers.world, os.getpid())
        if is_auto(cfg):
            cfg = with_batch_size(cfg, peers.ask(SIZE, 0, math.inf))
        cfg, _ = with_chosen_parallel(for_processes(cfg, peers.world.size), peers)
        parts = build_parts(cfg, peers=peers)
        check_attention(parts.model, parts.system)
        saver = saver_of_other(run_dir, parts.parallel, peers)
        start = load_start(cfg, saver.folder, parts.parallel)
        vars(state).update(vars(start.state))
        recorder = following_recorder(run_dir, saver, parts, stop, {"config": plain_config(cfg)})
        trainer: Trainer = build(cfg.trainer, parts, recorder, state)
        trainer.tasks.load()
        start.restore(trainer)
        if start.is_new and cfg.get("init_from"):
            begin_with_weights(trainer, Path(cfg.init_from), token_folders(cfg.data))
    if start.origin is not None:
        trainer.checkpoints.save(state)  # as the first process does
    del start
    trainer.fit()
    parts.parallel.close()


def _check_shared(run_dir: Path, peers: Peers) -> None:
    """Check that this process sees the directory that the first one has made; a network disk may need a minute."""
    end = time.monotonic() + PATIENCE_S
    while not (run_dir / "config.yaml").exists():
        if (failure := peers.failure()) is not None:
            raise failure
        if time.monotonic() > end:
            raise ValueError(f"{run_dir}: not there for {peers.world}; it must be a folder that all hosts share")
        time.sleep(0.1)
