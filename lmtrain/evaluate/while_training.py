"""Tasks of the EleutherAI harness while a model is trained."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.loop.training_parts import Parts
from lmtrain.machine import is_installed

if TYPE_CHECKING:  # loads lm-eval
    from lmtrain.evaluate.harness import HarnessModel
    from lmtrain.evaluate.tasks import LoadedTasks

TASKS, FOLDER = "trainer.eval_tasks", "trainer.eval_tasks_folder"


class TrainingTasks:
    """Runs tasks with the weights that the model has now. All processes of a run compute the same.

    Call `load` before the training: it changes the current folder of the process for a moment, and later a thread may
    be saving a checkpoint. Otherwise, the first evaluation calls it.

    Args:
        parts: The model, its device and number formats, and the other processes.
        tokenizer: Returns the tokenizer of the run's data; None if it has none.
        tasks: Names of tasks; empty for none.
        folder: The folder with the task files.
        limit: The first questions of each task only; None means all.
    """

    def __init__(
        self,
        parts: Parts,
        tokenizer: Callable[[], StoredTokenizer | None],
        tasks: Sequence[str],
        folder: str | None,
        limit: int | None,
    ) -> None:
        self.parts, self.tokenizer = parts, tokenizer
        self.tasks, self.limit = list(tasks), limit
        self.folder = None if folder is None else Path(folder)
        self.loaded: LoadedTasks | None = None

    def load(self) -> None:
        """Read the tasks and their data, and check that they can be run.

        Raises:
            ValueError: lm-eval is not installed, the run has no tokenizer, or there is no such folder or task.
        """
        if not self.tasks:
            return
        if not is_installed("lm_eval"):
            raise ValueError(
                f"{TASKS}: needs lm-eval; install it with pip install 'lmtrain[harness]', or set it to null"
            )
        if self.folder is None or not self.folder.is_dir():
            given = "null" if self.folder is None else self.folder
            raise ValueError(f"{FOLDER}={given}: no such folder; give the one with the task files")
        from lmtrain.evaluate.tasks import load_tasks

        self._model()
        self.loaded = load_tasks(self.tasks, self.folder)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the tasks; no random generator changes, and the model is as before."""
        if not self.tasks:
            return {}
        if self.loaded is None:
            self.load()
        assert self.loaded is not None
        model = self._model()
        training = self.parts.model.training
        self.parts.model.eval()
        try:
            with self.parts.parallel.collectives():
                found = self.loaded.run(model, self.limit)
        finally:
            self.parts.model.train(training)
            self.parts.parallel.free_weights()
        return {f"tasks/{each.task}/{each.metric}": each.value for each in found}

    def _model(self) -> "HarnessModel":
        from lmtrain.evaluate.harness import HarnessModel

        tokenizer, loader = self.tokenizer(), self.parts.train_loader
        if tokenizer is None:
            raise ValueError(f"{TASKS}: needs a tokenizer, which the run's data does not have; set it to null")
        return HarnessModel(self.parts.model, tokenizer, self.parts.system, loader.block_size, loader.batch_size)
