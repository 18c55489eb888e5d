"""Texts that a model wrote, and pieces of a text while it grows."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from lmtrain.data.stored_tokenizer import StoredTokenizer
from lmtrain.sample.generate import Continuation, Ending

UNFINISHED = "\ufffd"  # what a decoder returns for a part of a character
NEIGHBOURS = 8  # earlier tokens that are decoded with a new one


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote.

    Attributes:
        prompt: The text that was continued.
        text: The continuation, cut before a stop text.
        ids: The ids of all tokens that were chosen, also of those that are cut.
        tokens: The text of each of them.
        finish_reason: `length`, `end_of_text` or `stop`.
        seed: The seed.
        number: The number of the text among those of its prompt and seed, from 0.
        logprobs: For each token, log probabilities by id, before temperature and limits; None if not asked for.
    """

    prompt: str
    text: str
    ids: list[int] = field(repr=False)
    tokens: list[str] = field(repr=False)
    finish_reason: Ending
    seed: int
    number: int
    logprobs: list[dict[int, float]] | None = field(repr=False)


class GrowingText:
    """Decodes a continuation as it grows, never half a character, and finds stop texts in it.

    A token costs the decoding of a few tokens, however long the text is.
    """

    def __init__(self, tokenizer: StoredTokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, [text for text in stop if text]
        self.ids, self.before = [*prompt], tokenizer.decode(prompt)
        self.text, self.shown, self.found = "", 0, False
        self._decoded = len(self.ids)  # this many ids are in `before` and `text`

    def add(self, token: int) -> None:
        """Add a token."""
        self.ids.append(token)
        # Earlier tokens are decoded with it, because some decoders drop a space at the start of what they get.
        start = max(0, self._decoded - NEIGHBOURS)
        old = self.tokenizer.decode(self.ids[start : self._decoded])
        new = self.tokenizer.decode(self.ids[start:])
        if not new.endswith(UNFINISHED):
            self._decoded = len(self.ids)
            self._set(self.text + new[len(old) :], searched=len(self.text))

    def finish(self) -> None:
        """Accept the text as it is, even if it ends with a part of a character."""
        self._set(self.tokenizer.decode(self.ids)[len(self.before) :])

    def _set(self, text: str, searched: int = 0) -> None:
        """Replace the text, of which so many characters have no stop text."""
        if self.found:
            return
        self.text = text
        places = [text.find(each, max(0, searched - len(each) + 1)) for each in self.stop]
        if found := [place for place in places if place >= 0]:
            self.text, self.found = text[: min(found)], True

    def piece(self, *, last: bool = False) -> str:
        """Return what is new and can't be the begin of a stop text; all that is left if this is the last piece."""
        end = len(self.text)
        if not last and not self.found:
            held = [size for text in self.stop for size in range(1, len(text)) if self.text.endswith(text[:size])]
            end -= max(held, default=0)
        new, self.shown = self.text[self.shown : end], max(self.shown, end)
        return new


def as_sample(
    tokenizer: StoredTokenizer, prompt: str, text: Continuation, grown: GrowingText, seed: int, number: int
) -> Sample:
    """Return the finished text."""
    assert text.ending is not None
    grown.finish()
    tokens = [tokenizer.decode([token], skip_special_tokens=False) for token in text.ids]
    return Sample(prompt, grown.text, text.ids, tokens, text.ending, seed, number, text.logprobs or None)
