"""What answers: transformers or llama.cpp. Each has the parts of `Backend`, found by nothing but their names."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

from impruver_chat.generation.detokenizer import StreamingDetokenizer
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.responses.template_markers import TemplateMarkers


@dataclass(frozen=True)
class Prompt:
    """What the model is given: token ids, how many tokens the answer may have, and the seed of its choices."""

    ids: list[int]
    max_new_tokens: int
    seed: int


@dataclass(frozen=True)
class Answer:
    """What the model said; `ended` is False where it was cut off at its room."""

    text: str
    ended: bool


class Backend(Protocol):
    """A loaded model that answers prompts.

    `context_length` in tokens, None where unknown; `markers` of reasoning and tool calls in its chat template;
    `no_comparison_reason`: why there is nothing to compare its answers with, None where there is.
    """

    context_length: int | None
    markers: TemplateMarkers
    no_comparison_reason: str | None

    def encode(self, messages: list[dict], tools: list | None = None, kwargs: dict | None = None) -> list[int]:
        """The ids of a conversation up to where the assistant is to speak; RefusedError where the template refuses."""

    def stream_answer(self, prompt: Prompt, sampling: SamplingParams, emit: Callable[[str], None]) -> Answer:
        """Answers one prompt; the text goes to `emit` as it comes."""

    def without_adapter(self) -> AbstractContextManager:
        """Meanwhile the base answers, as it was before training; for a backend that is not `no_comparison_reason`."""

    def answer_batch(
        self, prompts: Sequence[Prompt], sampling: SamplingParams, size: int
    ) -> Iterator[tuple[int, Answer]]:
        """Answers at most `size` prompts at once; (place in `prompts`, answer), each when it is done."""


class ActiveGeneration:
    """An answer on its way, to the prompt at `index`; its text goes to `emit` as it comes."""

    def __init__(self, backend: Any, prompt: Prompt, index: int = 0, emit: Callable[[str], None] = lambda _: None):
        self.prompt, self.index = prompt, index
        self.token_count, self.has_ended = 0, False
        self._detokenizer = StreamingDetokenizer(backend.decode, backend.stops, emit)

    def add_token(self, token: int) -> bool:
        """Takes the next token; True where the answer has ended."""
        self._detokenizer.add_token(token)
        self.token_count += 1
        self.has_ended = self._detokenizer.stopped or self.token_count >= self.prompt.max_new_tokens
        return self.has_ended

    def finish(self) -> Answer:
        """The whole of it: no more tokens come."""
        return Answer(self._detokenizer.finish(), self._detokenizer.stopped)
