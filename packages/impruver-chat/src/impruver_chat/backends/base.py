"""What answers: transformers or llama.cpp. Each has the parts of `Backend`, found by nothing but their names."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from impruver_chat.generation.detokenizer import TextStream
from impruver_chat.generation.parameters import Sampling
from impruver_chat.responses.template_markers import Marks


@dataclass(frozen=True)
class Prompt:
    """What the model is given: token ids, how many tokens the answer may have, and the seed of its choices."""

    ids: list[int]
    room: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What the model said; `ended` is False where it was cut off at its room."""

    text: str
    ended: bool


class Backend(Protocol):
    """A loaded model. `context` is how many tokens it can take, None where that is not known; `marks`: what its
    template writes around reasoning and calls; `alone`: why there is nothing to compare it with, None where there is.
    """

    context: int | None
    marks: Marks
    alone: str | None

    def encode(self, messages: list[dict], tools: list | None = None, kwargs: dict | None = None) -> list[int]:
        """The ids of a conversation up to where the assistant is to speak; RefusedError where the template refuses."""

    def stream(self, prompt: Prompt, sampling: Sampling, emit: Callable[[str], None]) -> Answer:
        """Answers one prompt; the text goes to `emit` as it comes."""

    def without_adapter(self) -> AbstractContextManager:
        """Meanwhile the base answers, as it was before training; for a backend that is not `alone`."""

    def answer_batch(self, prompts: Sequence[Prompt], sampling: Sampling, size: int) -> Iterator[tuple[int, Answer]]:
        """Answers at most `size` prompts at once; (place in `prompts`, answer), each when it is done."""


class Reply:
    """An answer on its way, to the prompt at `place`; its text goes to `emit` as it comes."""

    def __init__(self, backend: Any, prompt: Prompt, place: int = 0, emit: Callable[[str], None] = lambda _: None):
        self.prompt, self.place = prompt, place
        self.said, self.ended = 0, False  # said: tokens
        self._text = TextStream(backend.decode, backend.stops, emit)

    def put(self, token: int) -> bool:
        """Takes the next token; True where the answer has ended."""
        self._text.put(token)
        self.said += 1
        self.ended = self._text.stopped or self.said >= self.prompt.room
        return self.ended

    def answer(self) -> Answer:
        """The whole of it: no more tokens come."""
        return Answer(self._text.end(), self._text.stopped)
