"""A conversation: what was said, and what of it goes into the next prompt. No input, no output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from impruver_core.errors import ImpruverError

Encode = Callable[[list[dict]], list[int]]


class NoAnswer(ImpruverError):
    """A prompt that leaves nothing to answer, or no room for the answer in the model's context."""


@dataclass
class Session:
    """The system prompt and the messages so far; `history_limit` counts messages, the new question included."""

    system_prompt: str | None = None
    history_limit: int = 10
    messages: list[dict] = field(default_factory=list)

    def ask(self, text: str) -> int:
        """Adds a question; how many messages the history limit put out for it."""
        self.messages.append({"role": "user", "content": text})
        kept = last_turns(self.messages, self.history_limit)
        dropped = len(self.messages) - len(kept)
        self.messages = kept
        return dropped

    def answer(self, text: str) -> None:
        """Adds what the model said."""
        self.messages.append({"role": "assistant", "content": text})

    def take_back(self) -> None:
        """Removes a question that got no answer."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.messages.pop()

    def reset(self) -> None:
        """Forgets all but the system prompt."""
        self.messages = []

    def prompt(
        self, encode: Callable[[list[dict]], list[int]], context: int | None, room: int
    ) -> tuple[list[int], int]:
        """(token ids for the model, messages put out because the context is full); see `fit`."""
        ids, kept = fit(self.messages, with_system(self.system_prompt), encode, context, room)
        dropped = len(self.messages) - len(kept)
        self.messages = kept
        return ids, dropped


def with_system(system_prompt: str | None) -> list[dict]:
    """The messages that stand before a conversation: the system's, or none."""
    return [{"role": "system", "content": system_prompt}] if system_prompt else []


def turns(messages: Sequence[dict]) -> list[list[dict]]:
    """The messages in turns: each begins with a user's message."""
    parted: list[list[dict]] = []
    for message in messages:
        if message["role"] == "user" or not parted:
            parted.append([])
        parted[-1].append(message)
    return parted


def last_turns(messages: Sequence[dict], limit: int) -> list[dict]:
    """The last whole turns of at most `limit` messages together; the very last one always."""
    kept: list[dict] = []
    for turn in reversed(turns(messages)):
        if kept and len(turn) + len(kept) > limit:
            break
        kept = turn + kept
    return kept


def fit(
    messages: Sequence[dict],
    system: list[dict],
    encode: Encode,
    context: int | None,
    room: int,
) -> tuple[list[int], list[dict]]:
    """(ids, messages) of the longest run of last turns that leaves `room` tokens of the context for the answer.

    The last turn alone may leave less room; NoAnswer where it leaves none.
    """
    parted = turns(messages)
    for first in range(len(parted)):
        kept = [message for turn in parted[first:] for message in turn]
        ids = encode(system + kept)
        if ids and (context is None or len(ids) + room <= context):
            return ids, kept
    return within(ids, context), kept


def within(ids: list[int], context: int | None) -> list[int]:
    """`ids` if there are any and the context has room for an answer behind them, else NoAnswer."""
    if not ids:
        raise NoAnswer("the chat template makes an empty prompt of it")
    if context is not None and len(ids) >= context:
        raise NoAnswer(f"the prompt takes {len(ids):,} tokens, and the model's context is {context:,}")
    return ids


def room_for(ids: list[int], context: int | None, wanted: int) -> int:
    """How many tokens the answer may have."""
    return wanted if context is None else min(wanted, context - len(ids))
