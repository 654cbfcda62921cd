"""A turn of a conversation: its prompt, the answer as it is streamed and shown, what is said about it on stderr."""

import json
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from impruver_core.cli.console import log_always, log_info, warn
from impruver_core.errors import ImpruverError, RefusedError

from impruver_chat.backends.base import Answer, Backend, BackendEndedError
from impruver_chat.conversation import Conversation, NoAnswerError
from impruver_chat.generation.prompt import Prompt, SamplingParams
from impruver_chat.responses.stream_parser import ResponseStreamParser, get_tool_calls
from impruver_chat.terminal.archive import ConversationArchive
from impruver_chat.terminal.display import MarkdownDisplay, PlainDisplay, uninterrupted
from impruver_chat.terminal.prompt_input import PromptReader


@dataclass
class ChatContext:
    """What a turn needs; `seed` is the next answer's, `compare` answers without the adapter, too.

    `template_arguments` are those that were set in this conversation; they go before the recipe's.
    """

    conversation: Conversation
    backend: Backend
    sampling: SamplingParams
    seed: int
    display: PlainDisplay | MarkdownDisplay
    reader: PromptReader
    archive: ConversationArchive
    compare: bool = False
    template_arguments: dict[str, Any] = field(default_factory=dict)


def answer_question(chat: ChatContext) -> None:
    """Have the model answer the last message, and add its answer; without an answer the message is removed."""
    conversation = chat.conversation
    chat.archive.save(conversation)  # the question is there even if this process is killed amid the answer
    prompt = build_prompt(chat)
    if prompt and chat.compare:
        log_always("with the adapter:")
    message, was_stopped = stream_answer(chat, prompt) if prompt else (None, False)
    if message is None:
        conversation.remove_last_messages()
        return
    conversation.messages.append(message)
    chat.archive.save(conversation)
    for call in get_tool_calls(message):
        log_always(f"function call: {call['name']} {json.dumps(call['arguments'], ensure_ascii=False)}")
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
    encode = partial(backend.tokenizer.encode, tools=None, kwargs=chat.template_arguments)
    try:
        window = conversation.build_prompt(encode, backend.context_length, wanted)
    except (RefusedError, NoAnswerError, KeyboardInterrupt) as error:
        if isinstance(error, KeyboardInterrupt):
            with suppress(KeyboardInterrupt), uninterrupted():
                chat.reader.discard_typed_lines()
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
    """Show an answer as it is generated; its message (None if there is none), and whether Ctrl+C stopped it."""
    parser = ResponseStreamParser(chat.backend.tokenizer.get_markers(chat.template_arguments), chat.display.feed)
    has_text = False
    answer: Answer | None = None

    def emit(piece: str) -> None:
        nonlocal has_text
        has_text = True
        parser.feed(piece)

    try:
        answer = chat.backend.stream_answer(prompt, chat.sampling, emit)
    except KeyboardInterrupt:
        pass
    except ImpruverError as error:
        parser.finish()
        chat.display.finish()
        if isinstance(error, BackendEndedError) or error.exit_code != 2:
            raise
        warn(f"not answered: {error}")  # such as no memory for so long a conversation
        return None, False
    with suppress(KeyboardInterrupt), uninterrupted():  # Ctrl+C once more says nothing new
        if answer is None:
            chat.reader.discard_typed_lines()
        message = parser.finish()
        chat.display.finish()
    log_end(answer, has_text, prompt, chat.sampling)
    return (message if has_text or answer is not None else None), answer is None


def log_end(answer: Answer | None, has_text: bool, prompt: Prompt, sampling: SamplingParams) -> None:
    """Say how an answer ended, unless by itself with a text; it is None where Ctrl+C stopped it."""
    if answer is None:
        log_always("(stopped)" if has_text else "(stopped before the first word: the question is taken back)")
        return
    if not has_text:
        log_always("(the model said nothing)")
    if not answer.ended:
        log_always(describe_limit(prompt, sampling))


def describe_limit(prompt: Prompt, sampling: SamplingParams) -> str:
    """Describe the limit that cut an answer off: that of new tokens, or the model's context."""
    if prompt.max_new_tokens < sampling.max_new_tokens:
        return f"(cut off after {prompt.max_new_tokens} tokens: the model's context is full)"
    return f"(cut off after {prompt.max_new_tokens} tokens; /set max_new_tokens NUMBER allows more)"
