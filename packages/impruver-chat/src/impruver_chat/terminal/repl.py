"""A conversation: questions by line, answers on stdout, all else on stderr; its loop, its turns, its slash commands.

A slash command is a function of the ChatContext and of the text behind its name.
"""

import json
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path

from impruver_core.cli.console import log_always, log_info, warn
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.io.jsonl import format_row

from impruver_chat.backends.base import Backend, BackendEndedError
from impruver_chat.conversation import Conversation, NoAnswerError
from impruver_chat.generation import parameters
from impruver_chat.generation.prompt import Prompt, SamplingParams
from impruver_chat.responses.stream_parser import ResponseStreamParser, get_tool_calls
from impruver_chat.terminal.display import MarkdownDisplay, PlainDisplay, make_display, uninterrupted
from impruver_chat.terminal.prompt_input import open_reader

COMMAND = re.compile(r"(/[A-Za-z_]+(?!\S)|/[/\s]*\Z)(.*)", re.DOTALL)  # neither a path nor a line of code


def run_conversation(
    conversation: Conversation, backend: Backend, sampling: SamplingParams, seed: int, plain: bool, compare: bool
) -> None:
    """Ask and answer until the input ends or Ctrl+C comes at the prompt; during an answer Ctrl+C stops the answer.

    BackendEndedError, after what was shown of the answer, where there can be no more answers.
    """
    log_info("Ctrl+D leaves, /help lists the commands")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding
    chat = ChatContext(conversation, backend, sampling, seed, make_display(plain), compare)
    with suppress(QuitRequest, KeyboardInterrupt), open_reader(COMMANDS) as read:
        while (text := read()) is not None:
            text = text.strip()
            if command := COMMAND.fullmatch(text):
                run_command(chat, command[1], command[2])
            elif text:
                conversation.messages.append({"role": "user", "content": text})
                answer_question(chat)


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
    conversation.messages.append(message)
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
    except BackendEndedError:
        parser.finish()
        chat.display.finish()
        raise
    with suppress(KeyboardInterrupt), uninterrupted():  # Ctrl+C once more says nothing new
        message = parser.finish()
        chat.display.finish()
    if was_stopped:
        log_always("(stopped)" if has_text else "(stopped before the first word: the question is taken back)")
    elif not has_text:
        log_always("(the model said nothing)")
    return (message if has_text or not was_stopped else None), was_stopped


class QuitRequest(Exception):
    """The person ends the conversation."""


def run_command(chat: ChatContext, name: str, rest: str) -> None:
    """Run a command; a wrong name or value is a warning, and nothing else happens."""
    if name not in COMMANDS:
        warn(f"no command {name}{parameters.suggest_name(name, COMMANDS)}; /help lists them")
        return
    try:
        COMMANDS[name](chat, rest.strip())
    except BackendEndedError:
        raise
    except ImpruverError as error:
        if error.exit_code != 2:
            raise
        warn(str(error))


def print_help(chat: ChatContext, rest: str) -> None:
    """Lists the commands and keys."""
    width = max(map(len, USAGES))
    lines = [f"{usage:{width}}  {command.__doc__}" for usage, command in USAGES.items()]
    lines += ["A new line in a question: Alt+Enter (Esc, then Enter), or \\ and then Enter."]
    lines += ["Ctrl+C stops an answer; at the prompt it leaves, as Ctrl+D does."]
    log_always("\n".join(lines))


def reset(chat: ChatContext, rest: str) -> None:
    """Forgets all that was said, but for the system prompt."""
    chat.conversation.reset()
    log_always("forgotten")


def set_system_prompt(chat: ChatContext, rest: str) -> None:
    """Shows or sets the system prompt; - removes it."""
    if rest:
        chat.conversation.system_prompt = None if rest == "-" else rest
    log_always(f"system prompt: {chat.conversation.system_prompt or 'none'}")


def retry(chat: ChatContext, rest: str) -> None:
    """Asks the last question again, with other draws."""
    chat.conversation.remove_last_answer()
    answer_question(chat)


def undo(chat: ChatContext, rest: str) -> None:
    """Takes the last question and its answer back."""
    log_always(f"taken back: {chat.conversation.remove_last_turn()}")


def set_parameter(chat: ChatContext, rest: str) -> None:
    """Shows the parameters, or sets one: /set temperature 0.2"""
    name, _, value = rest.partition(" ")
    if name == "history_limit":
        chat.conversation.history_limit = parameters.parse_parameter(name, value)
        log_always(f"history_limit {chat.conversation.history_limit}")
        return
    if rest:
        chat.sampling = parameters.with_parameter(chat.sampling, name, value.strip())
    log_always(parameters.format_parameters(chat.sampling))


def save(chat: ChatContext, rest: str) -> None:
    """Appends the conversation to a file, as a JSONL row."""
    if not rest:
        raise ImpruverError("name a file: /save FILE")
    if not chat.conversation.messages:
        raise ImpruverError("nothing was said yet")
    path, row = Path(rest), format_row({"messages": chat.conversation.get_messages()}) + "\n"
    try:
        path = path.expanduser()
        with path.open("a+b") as file:
            file.seek(max(file.seek(0, 2) - 1, 0))
            ends = file.read(1) in (b"", b"\n")
            file.write((row if ends else f"\n{row}").encode())
    except (OSError, RuntimeError, ValueError) as error:  # no home, no name, nothing that can be appended to
        raise ImpruverError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    log_always(f"appended {len(chat.conversation.get_messages())} messages to {path}")


def toggle_compare(chat: ChatContext, rest: str) -> None:
    """Answers with the adapter and without it, or no longer."""
    if chat.backend.no_comparison_reason:
        raise ImpruverError(chat.backend.no_comparison_reason)
    chat.compare = not chat.compare
    log_always("answers with the adapter and without it" if chat.compare else "answers with the adapter alone")


def add_result(chat: ChatContext, rest: str) -> None:
    """Gives the response of a function that the model called."""
    if not rest:
        raise ImpruverError("give the response, too: /result TEXT")
    left = chat.conversation.add_tool_response(rest)
    if left:
        log_always(f"{left} more of the calls wait for a response")
    else:
        answer_question(chat)


def request_quit(chat: ChatContext, rest: str) -> None:
    """Leaves."""
    raise QuitRequest


USAGES: dict[str, Callable[[ChatContext, str], None]] = {
    "/help": print_help,
    "/reset": reset,
    "/system [TEXT]": set_system_prompt,
    "/retry": retry,
    "/undo": undo,
    "/set [NAME VALUE]": set_parameter,
    "/save FILE": save,
    "/compare": toggle_compare,
    "/result TEXT": add_result,
    "/quit": request_quit,
}
COMMANDS = {usage.split()[0]: command for usage, command in USAGES.items()}
