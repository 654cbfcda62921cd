"""One turn of a conversation: ask the model, show its answer as it is generated, and add it to the conversation."""

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
    """What a turn needs; `seed` is the next answer's, `compare` answers without the adapter, too."""

    conversation: Conversation
    backend: Backend
    sampling: SamplingParams
    seed: int
    display: PlainDisplay | MarkdownDisplay
    compare: bool = False


def ask_question(chat: ChatContext, text: str) -> None:
    """Add a question, and have the model answer it."""
    chat.conversation.add_question(text)
    answer_question(chat)


def answer_question(chat: ChatContext) -> None:
    """Have the model answer the last message, and add its answer; without an answer the message is removed."""
    conversation = chat.conversation
    prompt = build_prompt(chat)
    if prompt and chat.compare:
        log_always("with the adapter:")
    message, was_stopped = stream_answer(chat, prompt) if prompt else (None, False)
    if message is None:
        conversation.remove_last_messages()
        return
    conversation.add_answer(message)
    for call in get_tool_calls(message):
        log_always(f"function call: {format_call(call)}")
    if chat.compare and not was_stopped:
        log_always("without it:")
        with chat.backend.without_adapter():
            stream_answer(chat, prompt)
    if conversation.find_pending_responses():
        log_always("/result TEXT gives the function's response")


def build_prompt(chat: ChatContext) -> Prompt | None:
    """Build the prompt of the conversation; None, and a warning, where it can't be asked so."""
    conversation, backend, wanted, seed = chat.conversation, chat.backend, chat.sampling.max_new_tokens, chat.seed
    chat.seed += 1
    try:
        window = conversation.build_prompt(backend.tokenizer.encode, backend.context_length, wanted)
    except (RefusedError, NoAnswerError, KeyboardInterrupt) as error:
        warn(f"not asked: {str(error) or 'stopped'}")
        return None
    log_forgotten_messages(window, conversation.history_limit, backend.context_length)
    if window.max_new_tokens < wanted:
        log_info(f"note: the context leaves {window.max_new_tokens} tokens for the answer")
    return Prompt(window.ids, window.max_new_tokens, seed)


def stream_answer(chat: ChatContext, prompt: Prompt) -> tuple[dict | None, bool]:
    """Show an answer as it is generated; its message (None if stopped before the first word), and whether stopped."""
    parser = ResponseStreamParser(chat.backend.tokenizer.markers, chat.display.feed)
    was_stopped = has_text = False

    def emit(piece: str) -> None:
        nonlocal has_text
        has_text = True
        parser.feed(piece)

    try:
        chat.backend.stream_answer(prompt, chat.sampling, emit)
    except KeyboardInterrupt:
        was_stopped = True
    with suppress(KeyboardInterrupt), uninterrupted():  # Ctrl+C once more says nothing new
        message = parser.finish()
        chat.display.finish()
    if was_stopped:
        log_always("(stopped)" if has_text else "(stopped before the first word: the question is taken back)")
    elif not has_text:
        log_always("(the model said nothing)")
    return (message if has_text or not was_stopped else None), was_stopped


def log_forgotten_messages(window: PromptWindow, history_limit: int, context_length: int | None) -> None:
    """Say that the oldest messages are no longer part of the prompt, and why."""
    reasons = [
        (window.forgotten_by_limit, f"chat.history_limit is {history_limit}"),
        (window.forgotten_by_context, f"the model's context is {context_length} tokens"),
    ]
    for count, reason in reasons:
        if count:
            log_info(f"note: the {count} oldest messages are forgotten: {reason}")
