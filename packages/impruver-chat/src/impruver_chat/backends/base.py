"""The interface of the backends (transformers, llama.cpp), and an answer while it is generated."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from impruver_core.errors import ImpruverError

from impruver_chat.backends.chat_tokenizer import ChatTokenizer
from impruver_chat.generation.detokenizer import StreamingDetokenizer
from impruver_chat.generation.prompt import Prompt, SamplingParams

MAX_BATCH_TOKENS = 32_768  # of prompts and answers at once; their cache is a few GB with a model of 7 B


@dataclass(frozen=True)
class Answer:
    """A model's answer; `ended` is False where it was cut off at `max_new_tokens`."""

    text: str
    ended: bool


IndexedAnswers = Iterator[tuple[int, Answer]]  # answers with the indices of their prompts, as each one ends
Emit = Callable[[str], None]  # takes a piece of an answer's text


class BackendEndedError(ImpruverError):
    """The process in which the model runs has ended: there will be no more answers."""


class Backend(Protocol):
    """A loaded model that answers prompts.

    `context_length` is None where it is unknown; `no_comparison_reason` is why there is nothing to compare its answers
    with, None for an adapter on its base.
    """

    tokenizer: ChatTokenizer
    context_length: int | None
    no_comparison_reason: str | None

    def stream_answer(self, prompt: Prompt, sampling: SamplingParams, emit: Emit) -> Answer:
        """Answer one prompt; pieces of text go to `emit` as they are generated."""

    def without_adapter(self) -> AbstractContextManager:
        """Have the base answer within the context, as it was before training."""

    def answer_batch(self, prompts: Sequence[Prompt], sampling: SamplingParams, size: int) -> IndexedAnswers:
        """Answer at most `size` prompts at once; yield (index in `prompts`, answer) as each one ends."""


class ActiveGeneration:
    """An answer while it is generated: its tokens so far, detokenized into `emit`, until a stop or its limit."""

    def __init__(self, tokenizer: ChatTokenizer, prompt: Prompt, index: int = 0, emit: Emit = lambda _: None):
        self.prompt, self.index = prompt, index
        self.token_count, self.has_ended = 0, False
        self._detokenizer = StreamingDetokenizer(tokenizer.decode, tokenizer.stops, emit)

    def add_token(self, token: int) -> bool:
        """Add the next token; True where the answer has ended."""
        self._detokenizer.add_token(token)
        self.token_count += 1
        self.has_ended = self._detokenizer.stopped or self.token_count >= self.prompt.max_new_tokens
        return self.has_ended

    def finish(self) -> Answer:
        """Flush the detokenizer; the whole answer."""
        return Answer(self._detokenizer.finish(), self._detokenizer.stopped)
