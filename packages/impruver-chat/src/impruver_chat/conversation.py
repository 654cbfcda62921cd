"""A conversation: what was said, and what of it goes into the next prompt. No input, no output."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from impruver_core.errors import ImpruverError

from impruver_chat.responses.stream_parser import get_tool_calls

ANSWER_ROLES = ("assistant", "function_call")
RESPONSE_ROLES = ("tool", "function_response")
EncodePrompt = Callable[[list[dict]], list[int]]


class NoAnswerError(ImpruverError):
    """A prompt that leaves nothing to answer, or no room for the answer in the model's context."""


@dataclass(frozen=True)
class PromptWindow:
    """A prompt's ids, the room for its answer in tokens, and how many messages it forgets: by which limit."""

    ids: list[int]
    max_new_tokens: int
    forgotten_by_limit: int
    forgotten_by_context: int


@dataclass
class Conversation:
    """The system prompt and all messages so far; the first `forgotten` of them are no longer asked with.

    `history_limit` counts the messages of a prompt, the new question included.
    """

    system_prompt: str | None = None
    history_limit: int = 10
    messages: list[dict] = field(default_factory=list)
    forgotten: int = 0

    def add_question(self, text: str) -> None:
        """Adds a question."""
        self.messages.append({"role": "user", "content": text})

    def add_answer(self, message: dict) -> None:
        """Adds what the model said."""
        self.messages.append(message)

    def add_tool_response(self, text: str) -> int:
        """Adds the response to the first call that has none; how many calls still wait. NoAnswer where none does."""
        waiting = self.find_pending_responses()
        if not waiting:
            raise NoAnswerError("no function was called")
        self.messages.append(waiting[0] | {"content": text})
        return len(waiting) - 1

    def find_pending_responses(self) -> list[dict]:
        """For each call that has no response yet, the message that will hold it, less its content."""
        responses = len(list(takewhile(lambda message: message["role"] in RESPONSE_ROLES, reversed(self.messages))))
        caller = self.messages[-1 - responses] if len(self.messages) > responses else {"role": None}
        if caller["role"] == "function_call":
            wanted = [{"role": "function_response"} for _ in get_tool_calls(caller)]
        else:
            calls = caller.get("tool_calls", ())
            wanted = [{"role": "tool", "name": call["function"]["name"], "tool_call_id": call["id"]} for call in calls]
        return wanted[responses:]

    def remove_last_turn(self) -> str:
        """Removes the last question and all that came of it; the question. NoAnswer where there is none."""
        if not self.messages:
            raise NoAnswerError("nothing was said yet")
        turn = split_turns(self.messages)[-1]
        self.remove_last_messages(len(turn))
        return turn[0]["content"]

    def remove_last_answer(self) -> None:
        """Removes the last answer, so that it can be asked for again. NoAnswer where there is none."""
        if not self.messages or self.messages[-1]["role"] not in ANSWER_ROLES:
            raise NoAnswerError("no answer yet")
        self.remove_last_messages()

    def remove_last_messages(self, count: int = 1) -> None:
        """Removes the last messages: a question or response that got no answer."""
        self.messages = self.messages[: len(self.messages) - count]
        if self.forgotten >= len(self.messages):  # what is left would say nothing: all of it counts again
            self.forgotten = 0

    def reset(self) -> None:
        """Forgets all but the system prompt."""
        self.messages, self.forgotten = [], 0

    def get_messages(self) -> list[dict]:
        """The system prompt and all that was said, forgotten or not."""
        return make_system_messages(self.system_prompt) + self.messages

    def build_prompt(self, encode: EncodePrompt, context: int | None, room: int) -> PromptWindow:
        """What the model is given; NoAnswer where that leaves no room for an answer. See `fit`."""
        there = self.messages[self.forgotten :]
        limited = select_last_turns(there, self.history_limit)
        ids, kept = fit_to_context(limited, make_system_messages(self.system_prompt), encode, context, room)
        room = limit_new_tokens(ids, context, room)
        self.forgotten = len(self.messages) - len(kept)
        return PromptWindow(ids, room, len(there) - len(limited), len(limited) - len(kept))


def make_system_messages(system_prompt: str | None) -> list[dict]:
    """The messages that stand before a conversation: the system's, or none."""
    return [{"role": "system", "content": system_prompt}] if system_prompt else []


def split_turns(messages: Sequence[dict]) -> list[list[dict]]:
    """The messages in turns: each begins with a user's message."""
    parted: list[list[dict]] = []
    for message in messages:
        if message["role"] == "user" or not parted:
            parted.append([])
        parted[-1].append(message)
    return parted


def select_last_turns(messages: Sequence[dict], limit: int) -> list[dict]:
    """The last whole turns of at most `limit` messages together; the very last one always."""
    kept: list[dict] = []
    for turn in reversed(split_turns(messages)):
        if kept and len(turn) + len(kept) > limit:
            break
        kept = turn + kept
    return kept


def fit_to_context(
    messages: Sequence[dict], system: list[dict], encode: EncodePrompt, context: int | None, room: int
) -> tuple[list[int], list[dict]]:
    """(ids, messages) of the longest run of last turns that leaves `room` tokens of the context for the answer.

    The last turn alone may leave less room.
    """
    parted = split_turns(messages)
    for first in range(len(parted)):
        kept = [message for turn in parted[first:] for message in turn]
        ids = encode(system + kept)
        if ids and (context is None or len(ids) + room <= context):
            break
    return ids, kept


def limit_new_tokens(ids: list[int], context: int | None, wanted: int) -> int:
    """How many tokens the answer may have; NoAnswer where there are no `ids`, or the context has no more room."""
    if not ids:
        raise NoAnswerError("the chat template makes an empty prompt of it")
    if context is not None and len(ids) >= context:
        raise NoAnswerError(f"the prompt takes {len(ids):,} tokens, and the model's context is {context:,}")
    return wanted if context is None else min(wanted, context - len(ids))
