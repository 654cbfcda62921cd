"""One turn of a conversation: ask the model, show its answer as it is generated, and add it to the conversation."""

from contextlib import suppress
from dataclasses import dataclass

from impruver_core.cli.console import log_always, log_info, warn
from impruver_core.errors import RefusedError

from impruver_chat.backends.base import Backend, Prompt
from impruver_chat.conversation import Conversation, NoAnswerError
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.responses.stream_parser import ResponseStreamParser, get_tool_calls
from impruver_chat.responses.tool_call_parser import format_call
from impruver_chat.terminal.display import MarkdownDisplay, PlainDisplay, uninterrupted


@dataclass
class ChatContext:
    """What a turn needs; `seed` is the next answer's, `compare` answers without the adapter, too."""

    conversation: Conversation
    backend: Backend
    sampling: SamplingParams
    seed: int
    display: PlainDisplay | MarkdownDisplay
    compare: bool = False


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
    if window.forgotten_by_limit:
        reason = f"chat.history_limit is {conversation.history_limit}"
        log_info(f"note: the {window.forgotten_by_limit} oldest messages are forgotten: {reason}")
    if window.forgotten_by_context:
        reason = f"the model's context is {backend.context_length} tokens"
        log_info(f"note: the {window.forgotten_by_context} oldest messages are forgotten: {reason}")
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
