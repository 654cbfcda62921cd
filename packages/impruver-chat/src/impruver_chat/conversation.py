"""A conversation: its messages, and which of them go into the next prompt. No input, no output."""

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from impruver_core.errors import ImpruverError

from impruver_chat.messages import ANSWER_ROLES, RESPONSE_ROLES, make_system_messages
from impruver_chat.responses.stream_parser import get_tool_calls

ANSWER_SHARE = 4  # history leaves at least one part in so many of the context to the answer, if that may be so long
EncodeMessages = Callable[[list[dict]], list[int]]


class NoAnswerError(ImpruverError):
    """A prompt that leaves nothing to answer, or no room for the answer in the model's context."""


@dataclass(frozen=True)
class PromptWindow:
    """The ids of a prompt, the limit of its answer, and how many messages were dropped for which reason."""

    ids: list[int]
    max_new_tokens: int
    forgotten_by_limit: int
    forgotten_by_context: int


@dataclass
class Conversation:
    """The system prompt and all messages so far; the first `forgotten` of them no longer go into prompts.

    `history_limit` counts the messages of a prompt, the new question included; None: as many as the context holds.
    """

    system_prompt: str | None = None
    history_limit: int | None = None
    messages: list[dict] = field(default_factory=list)
    forgotten: int = 0

    def get_messages(self) -> list[dict]:
        """The system prompt and all messages, forgotten or not."""
        return make_system_messages(self.system_prompt) + self.messages

    def add_question(self, text: str) -> None:
        """Add a question, in place of one that never got an answer."""
        if self.messages and self.messages[-1]["role"] == "user":
            self.remove_last_messages()
        self.messages.append({"role": "user", "content": text})

    def is_unanswered(self) -> bool:
        """Whether the model is to speak next: after a question, or after the responses to all its calls."""
        return (
            bool(self.messages) and self.messages[-1]["role"] not in ANSWER_ROLES and not self.find_pending_responses()
        )

    def add_tool_response(self, text: str) -> int:
        """Add the response to the first tool call that has none; how many calls still wait. NoAnswerError without."""
        pending = self.find_pending_responses()
        if not pending:
            raise NoAnswerError("no function was called")
        self.messages.append(pending[0] | {"content": text})
        return len(pending) - 1

    def find_pending_responses(self) -> list[dict]:
        """Find the tool calls without a response; for each the message that will hold it, less its content."""
        responses = len(list(takewhile(lambda message: message["role"] in RESPONSE_ROLES, reversed(self.messages))))
        caller = self.messages[-1 - responses] if len(self.messages) > responses else {"role": None}
        if caller["role"] == "function_call":
            expected = [{"role": "function_response"} for _ in get_tool_calls(caller)]
        else:
            calls = [(call["function"]["name"], call["id"]) for call in caller.get("tool_calls", ())]
            expected = [{"role": "tool", "name": name, "tool_call_id": call_id} for name, call_id in calls]
        return expected[responses:]

    def remove_last_turn(self) -> str:
        """Remove the last question and all that followed it; the question. NoAnswerError where there is none."""
        if not self.messages:
            raise NoAnswerError("nothing was said yet")
        turn = split_turns(self.messages)[-1]
        self.remove_last_messages(len(turn))
        return turn[0]["content"]

    def remove_last_answer(self) -> None:
        """Remove the last answer, so that it can be generated again. NoAnswerError where there is none."""
        if not self.messages or self.messages[-1]["role"] not in ANSWER_ROLES:
            raise NoAnswerError("no answer yet")
        self.remove_last_messages()

    def remove_last_messages(self, count: int = 1) -> None:
        """Remove messages from the end, such as a question that got no answer."""
        self.messages = self.messages[: len(self.messages) - count]
        if self.forgotten >= len(self.messages):  # nothing would be left for a prompt: all of it counts again
            self.forgotten = 0

    def reset(self) -> None:
        """Forget all but the system prompt."""
        self.messages, self.forgotten = [], 0

    def build_prompt(self, encode: EncodeMessages, context_length: int | None, max_new_tokens: int) -> PromptWindow:
        """Build the prompt of the last turns that history limit and context allow, see `fit_to_context`.

        NoAnswerError where the context leaves no room for an answer.
        """
        current = self.messages[self.forgotten :]
        limited = select_last_turns(current, self.history_limit)
        system = make_system_messages(self.system_prompt)
        room = max_new_tokens if context_length is None else min(max_new_tokens, context_length // ANSWER_SHARE)
        ids, fitting = fit_to_context(limited, system, encode, context_length, room)
        max_new_tokens = limit_new_tokens(ids, context_length, max_new_tokens)
        self.forgotten = len(self.messages) - len(fitting)
        return PromptWindow(ids, max_new_tokens, len(current) - len(limited), len(limited) - len(fitting))


def split_turns(messages: Sequence[dict]) -> list[list[dict]]:
    """Split messages into turns, each beginning with a user's message."""
    turns: list[list[dict]] = []
    for message in messages:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return turns


def select_last_turns(messages: Sequence[dict], limit: int | None) -> list[dict]:
    """Select the last whole turns of at most `limit` messages together, the very last one always; None: all."""
    if limit is None:
        return list(messages)
    selected: list[dict] = []
    for turn in reversed(split_turns(messages)):
        if selected and len(turn) + len(selected) > limit:
            break
        selected = turn + selected
    return selected


def fit_to_context(
    messages: Sequence[dict], system: list[dict], encode: EncodeMessages, context_length: int | None, room: int
) -> tuple[list[int], list[dict]]:
    """Encode the longest run of last turns that leaves `room` tokens of the context; its ids and messages.

    The last turn alone may leave less room.
    """
    turns = split_turns(messages)
    encoded: dict[int, list[int]] = {}

    def join_turns(first: int) -> list[dict]:
        return [message for turn in turns[first:] for message in turn]

    def fits(first: int) -> bool:
        ids = encoded[first] = encode(system + join_turns(first))
        return bool(ids) and (context_length is None or len(ids) + room <= context_length)

    # All of them most often; else a long conversation is not encoded once for each of its turns.
    first = 0 if fits(0) else bisect_left(range(len(turns) - 1), True, lo=1, key=fits) if len(turns) > 1 else 0
    if first not in encoded:
        fits(first)
    return encoded[first], join_turns(first)


def limit_new_tokens(ids: list[int], context_length: int | None, wanted: int) -> int:
    """Limit an answer's tokens to what the context leaves; NoAnswerError for an empty prompt or a full context."""
    if not ids:
        raise NoAnswerError("the chat template makes an empty prompt of it")
    if context_length is not None and len(ids) >= context_length:
        raise NoAnswerError(f"the prompt takes {len(ids):,} tokens, and the model's context is {context_length:,}")
    return wanted if context_length is None else min(wanted, context_length - len(ids))
