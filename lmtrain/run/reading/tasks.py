"""Runs tasks of the EleutherAI harness with the model of a run."""

from collections.abc import Sequence
from pathlib import Path

from lmtrain.config.build import raising_config_errors
from lmtrain.data.stored_tokenizer import TOKENIZER_FILE
from lmtrain.errors import ConfigError
from lmtrain.evaluate.harness import HarnessModel
from lmtrain.evaluate.tasks import TaskMetric, run_tasks
from lmtrain.run.reading.loaded import LoadedModel

BATCH = 16  # questions at once; fewer if their logits would be large


def tasks_of(
    loaded: LoadedModel, tasks: Sequence[str], folder: Path, limit: int | None = None, fewshot: int | None = None
) -> list[TaskMetric]:
    """Return what tasks say about a model; see `run_tasks`.

    Raises:
        ConfigError: The run has no tokenizer, there is no such task, or its files can't be used.
    """
    if loaded.tokenizer is None:
        raise ConfigError(f"--tasks: {loaded.directory} has no {TOKENIZER_FILE}, because its data had none")
    block_size = int(loaded.config.data.block_size)
    with loaded.torch_as_in_the_run(), raising_config_errors():
        model = HarnessModel(loaded.model, loaded.tokenizer, loaded.system, block_size, BATCH)
        return run_tasks(model, tasks, folder, limit=limit, fewshot=fewshot)
