"""One conversation: who talks, and how an answer is asked for, shown and kept."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from impruver_core.cli.console import log_always, log_info, warn
from impruver_core.errors import RefusedError

from impruver_chat.backends.base import Backend, Prompt
from impruver_chat.conversation import Conversation, NoAnswerError, PromptWindow
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.responses.stream_parser import ResponseStreamParser, get_tool_calls
from impruver_chat.responses.tool_call_parser import format_call
from impruver_chat.terminal.display import MarkdownDisplay, PlainDisplay
from impruver_chat.terminal.interrupts import uninterrupted


@dataclass
class ChatContext:
    """A conversation's parts. `seed` is the next answer's; `compare` asks without the adapter, too."""

    conversation: Conversation
    backend: Backend
    sampling: SamplingParams
    seed: int
    display: PlainDisplay | MarkdownDisplay
    compare: bool = False


Command = Callable[[ChatContext, str], None]


def ask_question(chat: ChatContext, text: str) -> None:
    """Asks a question."""
    chat.conversation.add_question(text)
    answer_question(chat)


def answer_question(chat: ChatContext) -> None:
    """Has the model answer what was said; the answer is shown as it comes, and becomes part of the conversation."""
    conversation = chat.conversation
    prompt = build_prompt(chat)
    if prompt and chat.compare:
        log_always("with the adapter:")
    message, stopped = stream_answer(chat, prompt) if prompt else (None, False)
    if message is None:
        conversation.remove_last_messages()
        return
    conversation.add_answer(message)
    for call in get_tool_calls(message):
        log_always(f"function call: {format_call(call)}")
    if chat.compare and not stopped:
        log_always("without it:")
        with chat.backend.without_adapter():
            stream_answer(chat, prompt)
    if conversation.find_pending_responses():
        log_always("/result TEXT gives the function's response")


def build_prompt(chat: ChatContext) -> Prompt | None:
    """What the model is given for the conversation as it is; None, and a warning, where it can't be asked so."""
    conversation, backend, wanted, seed = chat.conversation, chat.backend, chat.sampling.max_new_tokens, chat.seed
    chat.seed += 1
    try:
        asked = conversation.build_prompt(backend.encode, backend.context_length, wanted)
    except (RefusedError, NoAnswerError, KeyboardInterrupt) as error:
        warn(f"not asked: {str(error) or 'stopped'}")
        return None
    log_forgotten_messages(asked, conversation, backend.context_length)
    if asked.max_new_tokens < wanted:
        log_info(f"note: the context leaves {asked.max_new_tokens} tokens for the answer")
    return Prompt(asked.ids, asked.max_new_tokens, seed)


def stream_answer(chat: ChatContext, prompt: Prompt) -> tuple[dict | None, bool]:
    """Shows an answer as it comes; (its message, whether Ctrl+C stopped it), no message if before the first word."""
    speech, stopped, told = ResponseStreamParser(chat.backend.markers, chat.display.feed), False, []

    def emit(piece: str) -> None:
        told.append(True)
        speech.feed(piece)

    try:
        chat.backend.stream_answer(prompt, chat.sampling, emit)
    except KeyboardInterrupt:
        stopped = True
    with suppress(KeyboardInterrupt), uninterrupted():  # Ctrl+C once more says nothing new
        message = speech.finish()
        chat.display.finish()
    if stopped:
        log_always("(stopped)" if told else "(stopped before the first word: the question is taken back)")
    elif not told:
        log_always("(the model said nothing)")
    return (message if told or not stopped else None), stopped


def log_forgotten_messages(asked: PromptWindow, conversation: Conversation, context: int | None) -> None:
    """Says that the oldest messages are no longer asked with."""
    reasons = [
        (asked.forgotten_by_limit, f"chat.history_limit is {conversation.history_limit}"),
        (asked.forgotten_by_context, f"the model's context is {context} tokens"),
    ]
    for count, reason in reasons:
        if count:
            log_info(f"note: the {count} oldest messages are forgotten: {reason}")
