"""Answers the questions of the EleutherAI harness (lm-eval) with a model, and runs its tasks from local files.

Its tasks are code: a task file may name Python functions, and its templates can call any method.
"""

import contextlib
import io
import logging
import math
import os
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.evaluator import simple_evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.errors import DataError
from lmtrain.evaluate.token_losses import MAX_LOGITS, logits_of
from lmtrain.sample.choice import Choice, random_numbers
from lmtrain.sample.generate import Continuation, continue_texts
from lmtrain.sample.text import GrowingText
from lmtrain.system import System
from lmtrain.terminal.as_text import first_few

BOOTSTRAPS = 1000  # for the standard errors of what is not a mean; means have a formula
FEWSHOT_SEED = 1234  # the harness's own
NEW_TOKENS = 256  # of a generated answer, if the task does not say


class Question(NamedTuple):
    """A continuation (its ids) after a context (its ids, at least one)."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


class HarnessModel(LM):  # type: ignore[misc]
    """A model as the harness sees it: texts in, log-likelihoods and texts out.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        system: Its device and number formats.
        block_size: Tokens that the model sees at most; longer contexts lose their beginning.
        batch_size: Questions that are answered at once.
    """

    def __init__(
        self, model: nn.Module, tokenizer: StoredTokenizer, system: System, block_size: int, batch_size: int
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.system, self.block_size = model, tokenizer, system, block_size
        vocab_size = int(getattr(model, "vocab_size", tokenizer.vocab_size))
        self.batch_size = max(1, min(batch_size, MAX_LOGITS // (block_size * vocab_size)))

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return for each context and continuation the log-likelihood, and whether greedy decoding would write it."""
        return self._answers([self._question(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each text, each token with as much context as the model can see."""
        questions: list[Question] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tokenizer.encode(request.args[0])
            prefix, rest = (self._prefix, ids) if self._prefix is not None else (ids[0], ids[1:])
            windows = get_rolling_token_windows(
                token_list=rest, prefix_token=prefix, max_seq_len=self.block_size, context_len=1
            )
            for window in map(make_disjoint_window, windows):
                questions.append(Question(tuple(window[0]), tuple(window[1])))
                owners.append(number)
        sums = [0.0] * len(requests)
        for owner, (loglikelihood, _) in zip(owners, self._answers(questions), strict=True):
            sums[owner] += loglikelihood
        return sums

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continue each context greedily, or as its task says, until one of its stop texts."""
        return [self._written(*request.args) for request in requests]

    @property
    def _prefix(self) -> int | None:
        """Return the id that begins a document."""
        return self.tokenizer.end_of_text

    def _question(self, context: str, continuation: str) -> Question:
        """Encode both texts as one, and cut it where the context ends; spaces there belong to the continuation."""
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        before = self.tokenizer.encode(context)
        whole = self.tokenizer.encode(context + continuation)
        if not before:
            before = [] if self._prefix is None else [self._prefix]
            whole = [*before, *whole]
        if not before:  # without an end of text, the first token can't be predicted
            return Question(tuple(whole[:1]), tuple(whole[1:]))
        return Question(tuple(before), tuple(whole[len(before) :]))

    def _answers(self, questions: Sequence[Question]) -> list[tuple[float, bool]]:
        """Answer questions, the longest first; those with the same tokens before the last one share a forward."""
        by_input: dict[tuple[int, ...], list[int]] = {}
        for number, question in enumerate(questions):
            tokens = (*question.context, *question.continuation)[-self.block_size - 1 :][:-1]
            by_input.setdefault(tokens, []).append(number)
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(questions)
        inputs = sorted(by_input, key=len, reverse=True)
        for first in range(0, len(inputs), self.batch_size):
            batch = [each for each in inputs[first : first + self.batch_size] if each]
            for tokens, logprobs in zip(batch, self._logprobs(batch), strict=True):
                for number in by_input[tokens]:
                    answers[number] = _score(logprobs[: len(tokens)], questions[number].continuation)
        return answers

    def _logprobs(self, batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Return the log probabilities (B, T, V) after each token of the sequences, which are padded at their end."""
        if not batch:
            return torch.empty(0, 0, 0)
        x = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)
        for row, tokens in enumerate(batch):
            x[row, : len(tokens)] = torch.tensor(tokens)
        return logits_of(self.model, self.system, x).log_softmax(-1).cpu()

    def _written(self, context: str, options: Mapping[str, Any]) -> str:
        until = options.get("until") or []
        count = min(int(options.get("max_gen_toks") or NEW_TOKENS), max(1, self.block_size - 1))
        temperature = float(options.get("temperature") or 0) if options.get("do_sample", True) else 0.0
        ids = self.tokenizer.encode(context) or [self._prefix or 0]
        ids = ids[-max(1, self.block_size - count) :]
        text = Continuation(ids, random_numbers(0, 0, count))
        growing = GrowingText(self.tokenizer, ids, [until] if isinstance(until, str) else until)

        def stops(found: Continuation) -> bool:
            growing.add(found.ids[-1])
            return growing.found

        continue_texts(
            self.model,
            [text],
            Choice(temperature=temperature, top_k=None),
            block_size=self.block_size,
            vocab_size=self.tokenizer.vocab_size,
            device=self.system.device,
            end_of_text=self.tokenizer.end_of_text,
            stops=stops,
        )
        growing.finish()
        return growing.text


def _score(logprobs: torch.Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """Return the summed log probability of the last tokens, and whether each of them was the likeliest."""
    kept = torch.tensor(continuation[-len(logprobs) :], dtype=torch.int64)
    if not len(kept):
        return 0.0, True
    rows = logprobs[-len(kept) :]
    chosen = rows.gather(-1, kept[:, None])[:, 0]
    return float(chosen.double().sum()), bool((rows.argmax(-1) == kept).all())


@dataclass(frozen=True)
class TaskMetric:
    """A result of a task, such as `acc`, with its standard error, if there is one."""

    task: str
    metric: str
    value: float
    standard_error: float | None
    samples: int


def run_tasks(
    model: HarnessModel, tasks: Sequence[str], folder: Path, *, limit: int | None = None, fewshot: int | None = None
) -> list[TaskMetric]:
    """Run tasks that files in a folder describe. Random generators stay unchanged, and no network is used.

    Args:
        model: The model.
        tasks: Names of tasks or groups.
        folder: The folder with task files (YAML) and their data; paths in them are relative to it.
        limit: The first questions of each task only; None means all.
        fewshot: Examples before each question; None means as many as the task says.

    Raises:
        DataError: There is no such task, or its files can't be used.
    """
    with _quiet(), _unchanged_generators(), contextlib.chdir(folder):
        manager = TaskManager(include_path=str(folder.absolute()), include_defaults=False)
        known = sorted(manager.all_tasks)
        if unknown := [task for task in tasks if task not in known]:
            there = f"it has {first_few(known, 12)}" if known else "it has no task files"
            raise DataError(f"--tasks {unknown[0]}: no such task in {folder}; {there}")
        try:
            found = simple_evaluate(
                model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=fewshot,
                bootstrap_iters=BOOTSTRAPS,
                log_samples=False,
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                fewshot_random_seed=FEWSHOT_SEED,
            )
        except Exception as error:  # a task file can fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"--tasks {','.join(tasks)}: the harness can't run this ({reason[:300]})") from error
    return list(_metrics(found or {}))


def _metrics(found: Mapping[str, Any]) -> Iterator[TaskMetric]:
    counts = found.get("n-samples", {})
    for task, values in found.get("results", {}).items():
        for key, value in values.items():
            name, _, filtered = key.partition(",")
            if name.endswith("_stderr") or not isinstance(value, int | float) or not filtered:
                continue
            error = values.get(f"{name}_stderr,{filtered}")
            metric = name if filtered == "none" else f"{name}/{filtered}"
            sure = float(error) if isinstance(error, int | float) and math.isfinite(error) else None
            yield TaskMetric(task, metric, float(value), sure, int(counts.get(task, {}).get("effective", 0)))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's log lines and progress bars away, and let it use neither a network nor more processes."""
    logger = logging.getLogger("lm_eval")
    level = logger.level
    changed = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "DISABLE_MULTIPROC": "1", "TQDM_DISABLE": "1"}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    logger.setLevel(logging.CRITICAL)
    errors = os.dup(2)
    try:
        with (
            open(os.devnull, "w", encoding="utf-8") as nowhere,
            contextlib.redirect_stderr(io.StringIO()),
            contextlib.redirect_stdout(io.StringIO()),
        ):
            os.dup2(nowhere.fileno(), 2)  # git, which it asks for its version, is another process
            yield
    finally:
        os.dup2(errors, 2)
        os.close(errors)
        logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _unchanged_generators() -> Iterator[None]:
    """Give Python's, NumPy's and torch's random generators their state back."""
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
