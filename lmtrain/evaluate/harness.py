"""Answers the questions of the EleutherAI harness (lm-eval) with a model."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import nn

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.errors import DataError
from lmtrain.evaluate.token_losses import MAX_LOGITS, logits_of
from lmtrain.sample.choice import Choice, random_numbers
from lmtrain.sample.generate import Continuation, continue_texts
from lmtrain.sample.text import GrowingText
from lmtrain.system import System

NEW_TOKENS = 256  # of a generated answer, if the task does not say
SEED = 0  # of the samples, of which each request has its own


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

    Attributes:
        failure: The error that ended the last call, so that a caller can tell it from an error of a task; else None.
    """

    def __init__(
        self, model: nn.Module, tokenizer: StoredTokenizer, system: System, block_size: int, batch_size: int
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.system, self.block_size = model, tokenizer, system, block_size
        vocab_size = int(getattr(model, "vocab_size", tokenizer.vocab_size))
        self.batch_size = max(1, min(batch_size, MAX_LOGITS // (block_size * vocab_size)))
        self.failure: Exception | None = None

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Return for each context and continuation the log-likelihood, and whether greedy decoding would write it.

        Raises:
            DataError: A context is empty, and the tokenizer has no end of text to begin with.
        """
        with self._keeping_failure():
            return self._answers([self._question(*request.args) for request in requests])

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Return the log-likelihood of each text, in windows of block_size tokens.

        Without an end of text that begins it, the first token of a text is not predicted.
        """
        questions: list[Question] = []
        owners: list[int] = []
        for number, request in enumerate(requests):
            ids = self.tokenizer.encode(request.args[0])
            if not ids:
                continue
            prefix, rest = (self._prefix, ids) if self._prefix is not None else (ids[0], ids[1:])
            windows = get_rolling_token_windows(
                token_list=rest, prefix_token=prefix, max_seq_len=self.block_size, context_len=1
            )
            for window in map(make_disjoint_window, windows):
                questions.append(Question(tuple(window[0]), tuple(window[1])))
                owners.append(number)
        sums = [0.0] * len(requests)
        with self._keeping_failure():
            for owner, (loglikelihood, _) in zip(owners, self._answers(questions), strict=True):
                sums[owner] += loglikelihood
        return sums

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Continue each context greedily, or as its task says, until one of its stop texts.

        Of a task's options for a choice that is not greedy, `temperature`, `top_k`, `top_p` and `min_p` count.

        Raises:
            DataError: A context is empty, and the tokenizer has no end of text to begin with.
        """
        with self._keeping_failure():
            started = [self._started(number, *request.args) for number, request in enumerate(requests)]
            for choice in dict.fromkeys(one.choice for one in started):
                group = {id(one.text): one for one in started if one.choice == choice}
                continue_texts(
                    self.model,
                    [one.text for one in group.values()],
                    choice,
                    block_size=self.block_size,
                    vocab_size=self.tokenizer.vocab_size,
                    device=self.system.device,
                    batch_size=self.batch_size,
                    end_of_text=self.tokenizer.end_of_text,
                    stops=lambda text, group=group: group[id(text)].add_last(),  # type: ignore[misc]
                )
            for one in started:
                one.growing.finish()
            return [one.growing.text for one in started]

    @contextmanager
    def _keeping_failure(self) -> Iterator[None]:
        self.failure = None
        try:
            yield
        except Exception as error:
            self.failure = error
            raise

    @property
    def _prefix(self) -> int | None:
        """Return the id that begins a document."""
        return self.tokenizer.end_of_text

    def _beginning(self) -> list[int]:
        """Return the ids before a text without a context."""
        if self._prefix is None:
            raise DataError("a context is empty, and the tokenizer of the run has no end of text to begin with")
        return [self._prefix]

    def _question(self, context: str, continuation: str) -> Question:
        """Encode both texts as one, and cut it where the context ends; spaces there belong to the continuation.

        If a token reaches over that place, the continuation is encoded by itself, so that it is scored after the same
        tokens as other continuations of this context.
        """
        spaces = len(context) - len(context.rstrip())
        if spaces:
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        before = self.tokenizer.encode(context)
        whole = self.tokenizer.encode(context + continuation)
        if not before:
            before = self._beginning()
            whole = [*before, *whole]
        if whole[: len(before)] != before or len(whole) == len(before):
            return Question(tuple(before), tuple(self.tokenizer.encode(continuation)))
        return Question(tuple(before), tuple(whole[len(before) :]))

    def _answers(self, questions: Sequence[Question]) -> list[tuple[float, bool]]:
        """Answer questions, the longest first; those with the same tokens before the last one share a forward."""
        by_input: dict[tuple[int, ...], list[tuple[int, Question]]] = {}
        for number, question in enumerate(questions):
            for piece in self._pieces(question):
                tokens = (*piece.context, *piece.continuation)[-self.block_size - 1 :][:-1]
                by_input.setdefault(tokens, []).append((number, piece))
        answers: list[tuple[float, bool]] = [(0.0, True)] * len(questions)
        inputs = sorted(by_input, key=len, reverse=True)
        for first in range(0, len(inputs), self.batch_size):
            batch = inputs[first : first + self.batch_size]
            for tokens, logprobs in zip(batch, self._logprobs(batch), strict=True):
                for number, piece in by_input[tokens]:
                    (total, all_greedy), (found, greedy) = answers[number], _score(logprobs[: len(tokens)], piece)
                    answers[number] = total + found, all_greedy and greedy
        return answers

    def _pieces(self, question: Question) -> Iterator[Question]:
        """Yield questions that the model can see whole, whose log-likelihoods add up to that of the question."""
        whole, begin = (*question.context, *question.continuation), len(question.context)
        for first in range(begin, len(whole), self.block_size):
            yield Question(whole[:first], whole[first : first + self.block_size])

    def _logprobs(self, batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
        """Return the log probabilities (B, T, V) after each token of the sequences, which are padded at their end."""
        x = torch.zeros(len(batch), len(batch[0]), dtype=torch.int64)
        for row, tokens in enumerate(batch):
            x[row, : len(tokens)] = torch.tensor(tokens)
        return logits_of(self.model, self.system, x).log_softmax(-1)

    def _started(self, number: int, context: str, options: Mapping[str, Any]) -> "_Answer":
        until = options.get("until") or []
        # At least half of what the model can see is left to the question.
        count = min(int(options.get("max_gen_toks") or NEW_TOKENS), max(1, self.block_size // 2))
        ids = self.tokenizer.encode(context) or self._beginning()
        ids = ids[-max(1, self.block_size - count) :]
        growing = GrowingText(self.tokenizer, ids, [until] if isinstance(until, str) else until)
        return _Answer(Continuation(ids, random_numbers(SEED, number, count)), growing, _choice(options))


@dataclass(frozen=True)
class _Answer:
    """A text that answers a question, while it grows."""

    text: Continuation
    growing: GrowingText
    choice: Choice

    def add_last(self) -> bool:
        """Decode the newest token; return whether the answer ends."""
        self.growing.add(self.text.ids[-1])
        return self.growing.found


def _choice(options: Mapping[str, Any]) -> Choice:
    """Return how a task wants tokens to be chosen: greedily, unless it asks for samples or gives a temperature."""
    samples = options.get("do_sample")
    temperature = float(options.get("temperature") or (1.0 if samples else 0.0))
    if samples is False or temperature == 0:
        return Choice(temperature=0.0, top_k=None)
    top_p, min_p = float(options.get("top_p") or 1.0), float(options.get("min_p") or 0.0)
    return Choice(temperature, int(options.get("top_k") or 0) or None, top_p, min_p)


def _score(logprobs: torch.Tensor, question: Question) -> tuple[float, bool]:
    """Return the summed log probability of the continuation, and whether each of its tokens was the likeliest."""
    kept = torch.tensor(question.continuation, device=logprobs.device)
    rows = logprobs[-len(kept) :]
    chosen = rows.gather(-1, kept[:, None])[:, 0]
    return float(chosen.double().sum()), bool((rows.argmax(-1) == kept).all())
