"""Trains one run, from a checked config to `result.json`."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lmtrain.checkpoint.folder import CheckpointFolder
from lmtrain.checkpoint.kept_choices import kept_choices
from lmtrain.checkpoint.recorder import Recorder
from lmtrain.checkpoint.saver import Saver
from lmtrain.checkpoint.several.sharded_folder import folder_of_first
from lmtrain.checkpoint.snapshot import TrainState
from lmtrain.checkpoint.steps import checkpoint_steps
from lmtrain.config.batch_size import SIZE, for_processes, is_auto
from lmtrain.config.build import build, raising_config_errors
from lmtrain.config.token_files import token_folders
from lmtrain.data.stored_tokenizer import (
    StoredTokenizer,
)
from lmtrain.errors import COMPLETED, ENDS_EVERYWHERE, ConfigError, DataError, InterruptedBySignal, ending_of
from lmtrain.evaluate.while_training import TrainingTasks
from lmtrain.files.limited import read_json
from lmtrain.hardware.processes import leave_the_others
from lmtrain.logger.base import CompositeLogger
from lmtrain.logger.console import ConsoleLogger
from lmtrain.logger.jsonl import JsonlLogger
from lmtrain.logger.samples import SAMPLES_FILE, SamplesLogger
from lmtrain.logger.wandb import agent_run_id
from lmtrain.loop.bad_batches import BadBatches
from lmtrain.loop.stop_request import PRUNE_FILE, REPEAT_OF_SEVERAL_S, REPEAT_S, StopRequest
from lmtrain.loop.training_parts import Parts
from lmtrain.micro_batch.find import found_size
from lmtrain.parallel.peers import Peers
from lmtrain.parts import build_parts, check_attention, check_model_size
from lmtrain.run import report
from lmtrain.run.background import BackgroundFacts
from lmtrain.run.directory import RunDirectory, refuse_existing_run
from lmtrain.run.environment import describe_environment, hardware_and_software
from lmtrain.run.identity import plain_config
from lmtrain.run.logger_info import run_info
from lmtrain.run.provenance import Resume, RunRequest, evaluation_summary, model_summary, record_start
from lmtrain.run.reading.loaded import saved_model
from lmtrain.run.result import write_result
from lmtrain.run.start import load_start, start_checkpoints
from lmtrain.run.tokenizer import keep_tokenizer
from lmtrain.sample.while_training import TrainingSamples
from lmtrain.terminal.console import configure_logging
from lmtrain.trainer import Trainer

log = logging.getLogger(__name__)

Afterwards = Callable[[str], None]  # called with the status in `result.json`


@dataclass(frozen=True)
class Outcome:
    """Holds how a run ended: exit code for the process, objective for a sweeper, error for a caller in Python."""

    exit_code: int
    objective: float | None
    error: BaseException | None = None


def run(
    cfg: DictConfig,
    run_dir: Path,
    hydra_files: Mapping[str, str],
    *,
    resumed: Resume | None = None,
    lineage: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    owns_process: bool = True,
    facts: BackgroundFacts | None = None,
    peers: Peers | None = None,
) -> Outcome:
    """Train in a run directory and record how the run ended.

    Args:
        cfg: The checked config.
        run_dir: The run directory, new or of the run to resume.
        hydra_files: Texts for `.hydra/` by file name: the config as composed, from which a resume starts.
        resumed: Describes the resume, if this continues a run.
        lineage: Entries of `environment.json` that describe the run which this one repeats.
        notes: Lines to log before the run starts.
        owns_process: False if the caller continues after the run, for example in a notebook; see `StopRequest`.
        facts: The facts that a caller has begun to gather before it imported this module; None to begin now.
        peers: The connection to the other processes of the run, which call `follow`; None if there are none.

    Raises:
        ConfigError: building the parts showed a mistake (also recorded in `result.json`), or the directory belongs to
            another run.
    """
    facts = facts or BackgroundFacts(cfg)
    state = TrainState()
    with contextlib.ExitStack() as stack:
        with raising_config_errors():
            directory = stack.enter_context(RunDirectory(run_dir))
        if resumed is None:
            refuse_existing_run(directory.path)
            directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
        else:
            _refuse_fewer_steps(cfg, directory.path)
        with raising_config_errors():  # for example, a folder where a file should be
            configure_logging(directory.path)
            repeat_s = REPEAT_S if peers is None else REPEAT_OF_SEVERAL_S
            stop = StopRequest(directory.path / PRUNE_FILE, owns_process=owns_process, repeat_s=repeat_s)
            stack.enter_context(stop)
            stop.defers = peers is not None  # several processes can stop only together, after their first step
        error: BaseException | None = None
        afterwards: list[Afterwards] = []
        try:
            with raising_config_errors():
                kept = kept_choices(directory.path, cfg.get("fork"))
            if peers is not None and is_auto(cfg):
                from lmtrain.run.several.chosen_parallel import with_chosen_parallel  # loads all of `plan`

                for_processes(with_chosen_parallel(cfg, peers)[0], peers.world.size)  # one process can't try for FSDP
            found = found_size(cfg, kept, 1 if peers is None else peers.world.size)
            if peers is not None:
                peers.tell(SIZE, found.cfg.data.get("batch_size"))
            cfg = found.cfg
            if resumed is None and found.resolved:
                directory.write_config(OmegaConf.to_yaml(cfg), hydra_files)
            notes = [*notes, *found.notes]
            request = RunRequest(cfg, hydra_files, resumed, lineage or {}, notes, facts, kept, found.resolved, peers)
            train(request, directory, state, stop, afterwards)
        except BaseException as caught:
            error = caught
            if peers is not None and not isinstance(error, ENDS_EVERYWHERE):
                peers.fail(f"{type(error).__name__}: {error}")
                leave_the_others(at_once=True)
        stop.defers = True  # writing the result is quick, and a signal must not prevent it
        ending = ending_of(error)
        # A resume that could not begin, or had nothing left to do, keeps the recorded result of the run. But a run that
        # was killed after its last step has no final result yet.
        ended = read_json(directory.path / "result.json").get("status") == COMPLETED.status
        if resumed is None or resumed.began or (error is None and not ended):
            write_result(cfg, directory, state, ending.status, error)
        for task in afterwards:
            _do_afterwards(task, ending.status, stop)
        if error is None:
            report.log_summary(state, cfg, directory)
        else:
            report.log_ending(error, directory.path)
        if peers is not None:
            peers.end()
    if isinstance(error, ConfigError):
        raise error
    return Outcome(ending.exit_code, state.best_val_loss, error)


def _do_afterwards(task: Afterwards, status: str, stop: StopRequest) -> None:
    """Run a task after the result is written. A signal interrupts it; an error does not change the result."""
    try:
        try:
            stop.defers = False
            task(status)
        finally:
            stop.defers = True  # also while the lines below are logged
    except InterruptedBySignal as signal:
        log.warning("%s, after the run had ended: %s", signal, status)
    except Exception as error:
        log.warning("%s: %s, after the run had ended: %s", type(error).__name__, error, status)
        log.debug("traceback", exc_info=True)


def train(
    request: RunRequest, directory: RunDirectory, state: TrainState, stop: StopRequest, afterwards: list[Afterwards]
) -> None:
    """Build the parts in the order that data flows, and train; `state` is updated during the training.

    Tasks that may take long or fail are added to `afterwards`, to be run after the result is written.
    """
    resumed, peers = request.resumed, request.peers
    with raising_config_errors():
        cfg = for_processes(request.cfg, peers.world.size if peers else 1)
        if cfg is not request.cfg:
            note = f"micro-batches have {cfg.data.batch_size} sequences, so that all processes have some"
            request = replace(request, notes=[*request.notes, note])
        if peers is not None:
            from lmtrain.run.several.chosen_parallel import with_chosen_parallel  # loads all of `plan`

            cfg, notes = with_chosen_parallel(cfg, peers)
            request = replace(request, notes=[*request.notes, *notes])
        check_model_size(cfg, start_checkpoints(cfg, directory.path))
        parts = build_parts(cfg, kept=request.kept, peers=peers)
        run_id = directory.run_id(given=agent_run_id())
        checkpoints = folder_of_first(directory.path, run_id, parts.parallel, peers)
        start = load_start(cfg, checkpoints, parts.parallel)
        vars(state).update(vars(start.state))
        request.facts.wait_for_trial()
        tokenizer = keep_tokenizer(cfg, directory, start.origin.run if start.origin is not None else None)
        described = describe_environment(
            run_id, parts.system.describe(), plain_config(request.cfg), request.facts.get()
        )
        resolved = parts.system.resolved | request.resolved | check_attention(parts.model, parts.system)
        described |= {"resolved": resolved, "cuda_allocator": parts.system.allocator()}
        if (processes := parts.parallel.describe()) is not None:
            described |= {"processes": processes, "world_size": parts.parallel.world.size}
        environment = {**described, **request.lineage, **start.lineage}
        identity = read_json(directory.path / "environment.json") | environment  # a resumed fork knows its origin
        tasks = _check_watching(cfg.trainer, parts, tokenizer)
        recorder = build_recorder(request.cfg, directory, parts, checkpoints, state, stop, tokenizer, identity)
    afterwards.append(recorder.logger.close)
    with raising_config_errors():
        trainer: Trainer = build(cfg.trainer, parts, recorder, state)
        trainer.tasks.loaded = tasks.loaded
        start.restore(trainer)
        if start.is_new and cfg.get("init_from"):
            from lmtrain.convert.initial_weights import begin_with_weights

            environment |= {"init_from": begin_with_weights(trainer, Path(cfg.init_from), token_folders(cfg.data))}
        recorder.logger.rewind(state.logged_step)
        if resumed is None or state.step < trainer.max_steps or state.pending is not None:
            fingerprints = trainer.snapshot.data["fingerprints"]
            environment |= {
                "model": model_summary(parts),
                "data": fingerprints,
                "evaluation": evaluation_summary(parts, trainer.evaluator, fingerprints, state.logged_step),
            }
            record_start(request, directory, environment, start.environment)
        if start.origin is not None:
            trainer.checkpoints.save(state)  # a resume no longer needs the origin, which may remove its checkpoint
    del start  # it takes as much memory as the model and the optimizer
    report.announce(request, directory, trainer)
    try:
        trainer.fit()
    except DataError as error:
        command = report.resume_command(directory.path)
        raise ConfigError(f"{error}; to continue after fixing that: {command}") from error
    parts.parallel.close()
    stop.defers = True
    if tokenizer is not None and cfg.sample_tokens:
        block_size = trainer.train_loader.block_size

        def sample(status: str) -> None:
            shared = parts.parallel.shares_model
            with trainer.evaluation_weights.in_use() if not shared else contextlib.nullcontext(), stop.at_once():
                model = saved_model(cfg, checkpoints, parts.system) if shared else parts.model
                report.show_sample(model, tokenizer, parts.system, block_size, cfg, directory)

        afterwards.append(sample)


def build_recorder(
    cfg: DictConfig,
    directory: RunDirectory,
    parts: Parts,
    checkpoints: CheckpointFolder,
    state: TrainState,
    stop: StopRequest,
    tokenizer: StoredTokenizer | None,
    environment: Mapping[str, Any],
) -> Recorder:
    """Build the recorder, which writes the run directory and the loggers; `environment` describes the machine."""
    info = run_info(cfg, directory, environment["run_id"])
    metrics, samples = JsonlLogger(directory.path / "metrics.jsonl"), SamplesLogger(directory.path / SAMPLES_FILE)
    console = ConsoleLogger(lambda: state.step, cfg.trainer.max_steps)
    return Recorder(
        logger=CompositeLogger(metrics, [console, samples, *(build(node, info) for node in cfg.logger.values())]),
        saver=Saver(checkpoints, before_commit=metrics.sync),  # a resume relies on the metrics up to the checkpoint
        bad_batches=BadBatches(
            directory.path / "bad-batches", parts.train_loader, tokenizer.decode if tokenizer else None
        ),
        stop=stop,
        tokenizer=lambda: tokenizer,
        identity={
            "run_id": environment["run_id"],
            "config": info.config,
            "environment": hardware_and_software(environment),
            "code": environment["code"],
            "forked_from": environment.get("forked_from"),
            **({"averaged_from": environment["averaged_from"]} if "averaged_from" in environment else {}),
        },
    )


def _check_watching(trainer: DictConfig, parts: Parts, tokenizer: StoredTokenizer | None) -> TrainingTasks:
    """Return the tasks of a run, loaded; raise ValueError if it can't run them or write the texts of its config."""
    if trainer.get("sample_interval"):
        TrainingSamples(parts, lambda: tokenizer, trainer.get("sample_prompts"), new_tokens=1).check()
    tasks, folder = trainer.get("eval_tasks") or [], trainer.get("eval_tasks_folder")
    made = TrainingTasks(parts, lambda: tokenizer, tasks, folder, limit=None)
    made.load()
    return made


def _refuse_fewer_steps(cfg: DictConfig, run_dir: Path) -> None:
    done = max(checkpoint_steps(run_dir), default=0)
    if cfg.trainer.get("max_steps", done) < done:
        raise ConfigError(
            f"trainer.max_steps={cfg.trainer.max_steps}: the run has already done {done} steps; give at least {done}"
        )
