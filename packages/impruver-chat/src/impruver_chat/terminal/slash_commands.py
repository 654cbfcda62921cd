"""The slash commands of a conversation; each is a function of the ChatContext and of the text behind its name."""

from collections.abc import Callable
from pathlib import Path

from impruver_core.cli.console import log_always, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.jsonl import format_row

from impruver_chat.generation.parameters import format_parameters, parse_parameter, suggest_name, with_parameter
from impruver_chat.terminal.chat_turn import ChatContext, answer_question

NONE = "-"  # as the text of /system


class QuitRequest(Exception):
    """The person ends the conversation."""


def run_command(chat: ChatContext, name: str, rest: str) -> None:
    """Run a command; a wrong name or value is a warning, and nothing else happens."""
    if name not in COMMANDS:
        warn(f"no command {name}{suggest_name(name, COMMANDS)}; /help lists them")
        return
    try:
        COMMANDS[name](chat, rest.strip())
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
        chat.conversation.system_prompt = None if rest == NONE else rest
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
        chat.conversation.history_limit = parse_parameter(name, value)
        log_always(f"history_limit {chat.conversation.history_limit}")
        return
    if rest:
        chat.sampling = with_parameter(chat.sampling, name, value.strip())
    log_always(format_parameters(chat.sampling))


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
        return
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
