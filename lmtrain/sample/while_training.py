"""Texts that a model writes while it is trained, always from the same prompts and with the same random numbers."""

from collections.abc import Callable, Sequence

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.loop.training_parts import Parts
from lmtrain.sample.choice import Choice, random_numbers
from lmtrain.sample.generate import Continuation, continue_texts

SEED = 0  # texts of different steps differ only by the weights
INTERVAL, PROMPTS = "trainer.sample_interval", "trainer.sample_prompts"

TokenizerOfRun = Callable[[], StoredTokenizer | None]


def no_tokenizer() -> None:
    """Return that there is no tokenizer."""


class TrainingSamples:
    """Continues the prompts of a run with the weights that its model has now.

    Args:
        parts: The model, its device and number formats, and the other processes, which all write the same texts.
        tokenizer: Returns the tokenizer of the run's data; None if it has none.
        prompts: The texts to continue; an empty one begins a document. None means one of these.
        new_tokens: Tokens of each continuation at most; an end of text ends it earlier.
    """

    def __init__(self, parts: Parts, tokenizer: TokenizerOfRun, prompts: Sequence[str] | None, new_tokens: int) -> None:
        self.model, self.system, self.parallel = parts.model, parts.system, parts.parallel
        self.block_size = parts.train_loader.block_size
        self.tokenizer, self.new_tokens = tokenizer, new_tokens
        self.prompts = [""] if prompts is None else list(prompts)

    def check(self) -> None:
        """Check that the prompts can be continued.

        Raises:
            ValueError: There is no prompt, the run has no tokenizer, or a prompt has characters that it does not know.
        """
        if not self.prompts:
            raise ValueError(f"{PROMPTS}=[]: give at least one, such as '', or set {INTERVAL} to null")
        self._encoded(self._known_tokenizer())

    def take(self) -> list[tuple[str, str]]:
        """Return each prompt and its continuation. No random generator is used, and the model stays as it is."""
        tokenizer = self._known_tokenizer()
        texts = [
            Continuation(ids, random_numbers(SEED, number, self.new_tokens))
            for number, ids in enumerate(self._encoded(tokenizer))
        ]
        try:
            with self.parallel.collectives(), self.system.autocast():
                continue_texts(
                    self.model,
                    texts,
                    Choice(),
                    block_size=self.block_size,
                    vocab_size=tokenizer.vocab_size,
                    device=self.system.device,
                    batch_size=len(texts),
                    end_of_text=tokenizer.end_of_text,
                )
        finally:
            self.parallel.free_weights()
        return [(prompt, _text(tokenizer, text)) for prompt, text in zip(self.prompts, texts, strict=True)]

    def _known_tokenizer(self) -> StoredTokenizer:
        tokenizer = self.tokenizer()
        if tokenizer is None:
            raise ValueError(f"{INTERVAL}: needs a tokenizer, which the run's data does not have; set it to null")
        return tokenizer

    def _encoded(self, tokenizer: StoredTokenizer) -> list[list[int]]:
        try:
            return [tokenizer.encode(prompt) or [tokenizer.end_of_text or 0] for prompt in self.prompts]
        except ValueError as error:
            raise ValueError(f"{PROMPTS}: {error}") from error


def _text(tokenizer: StoredTokenizer, text: Continuation) -> str:
    whole, before = tokenizer.decode([*text.prompt, *text.ids]), tokenizer.decode(text.prompt)
    return whole[len(before) :]
