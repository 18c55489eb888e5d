"""Runs tasks of the EleutherAI harness with the model of a run."""

from lmtrain.config.build import raising_config_errors
from lmtrain.errors import ConfigError
from lmtrain.evaluate.harness import HarnessModel
from lmtrain.evaluate.tasks import LoadedTasks, TaskMetric
from lmtrain.run.reading.loaded import LoadedModel
from lmtrain.run.reading.run_data import NO_TOKENIZER

BATCH = 16  # questions at once; fewer if their logits would be large


def tasks_of(loaded: LoadedModel, tasks: LoadedTasks, limit: int | None = None) -> list[TaskMetric]:
    """Return what tasks say about a model; see `LoadedTasks.run`.

    Raises:
        ConfigError: The run has no tokenizer, or the files of a task can't be used.
    """
    if loaded.tokenizer is None:
        raise ConfigError(f"--tasks: {loaded.directory} {NO_TOKENIZER}")
    block_size = int(loaded.config.data.block_size)
    with loaded.torch_as_in_the_run(), raising_config_errors():
        model = HarnessModel(loaded.model, loaded.tokenizer, loaded.system, block_size, BATCH)
        return tasks.run(model, limit)
