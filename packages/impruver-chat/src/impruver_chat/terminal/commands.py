"""The slash commands of a conversation: each a function of the ChatContext and of the text behind its name."""

import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from impruver_core.chat_template.rendering.renderer import find_variables
from impruver_core.cli.console import format_table, log_always, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.jsonl import format_row
from impruver_core.suggestions import find_similar

from impruver_chat.backends.base import BackendEndedError
from impruver_chat.conversation import split_turns
from impruver_chat.generation import parameters, template_arguments
from impruver_chat.terminal.turns import ChatContext, answer_question

LISTED = 20  # saved conversations that /resume list shows
LONGEST_LISTED = 50  # characters of a question in it
# What other programs call these commands, and what people try.
SYNONYMS = {
    "/help": "h commands command usage about info man tips",
    "/reset": "clear cls new forget restart new_chat newchat wipe clean start_over flush",
    "/system": "sys system_prompt prompt persona role instructions",
    "/retry": "regenerate regen again redo repeat reroll resend rerun retake",
    "/undo": "edit delete del rewind back remove pop revert take_back",
    "/set": "parameters params parameter settings setting options option config temperature temp top_p top_k"
    " max_new_tokens max_tokens repetition_penalty do_sample history_limit template_kwargs chat_template_kwargs show",
    "/think": "thinking reasoning reason no_think nothink think_off think_on reasoning_effort enable_thinking",
    "/resume": "load restore continue open reopen sessions session conversations chats history last",
    "/save": "write export store dump log record",
    "/compare": "diff base adapter lora without_adapter",
    "/result": "tool function response output tool_result function_response return",
    "/quit": "exit q bye leave close stop end logout abort x",
}
MEANINGS = {f"/{word}": command for command, words in SYNONYMS.items() for word in words.split()}
MEANINGS["/?"] = "/help"


class QuitRequest(Exception):
    """The person ends the conversation."""


def run_command(chat: ChatContext, name: str, rest: str) -> None:
    """Run a command; a wrong name or value is a warning, and nothing else happens."""
    if name not in COMMANDS:
        command = find_command(name)
        warn(f"no command {name}{f', did you mean {command}?' if command else ''}; /help lists them")
        return
    try:
        COMMANDS[name](chat, rest.strip())
    except BackendEndedError:
        raise
    except ImpruverError as error:
        if error.exit_code != 2:
            raise
        warn(str(error))


def find_command(name: str) -> str | None:
    """Find the command that another name stands for, by its meaning, else by its letters; None where none is near."""
    name = name.lower().replace("-", "_")
    if name in COMMANDS or name in MEANINGS:
        return MEANINGS.get(name, name)
    similar = find_similar(name, [*COMMANDS, *MEANINGS], cutoff=0.6) or find_similar(name, COMMANDS, cutoff=0.5)
    return MEANINGS.get(similar[0], similar[0]) if similar else None


def print_help(chat: ChatContext, rest: str) -> None:
    """Lists the commands and keys."""
    width = max(map(len, USAGES))
    lines = [f"{usage:{width}}  {command.__doc__}" for usage, command in USAGES.items()]
    lines += ["A new line in a question: Alt+Enter (Esc, then Enter), or \\ and then Enter."]
    lines += ["Ctrl+C stops an answer, and drops lines that were typed meanwhile."]
    lines += ["At the prompt it leaves, as Ctrl+D does, and exit or quit alone in a line."]
    log_always("\n".join(lines))


def reset(chat: ChatContext, rest: str) -> None:
    """Forgets all that was said, but for the system prompt."""
    chat.archive.begin_new()
    chat.conversation.reset()
    log_always("forgotten")


def set_system_prompt(chat: ChatContext, rest: str) -> None:
    """Shows or sets the system prompt; - removes it."""
    if rest:
        chat.conversation.system_prompt = None if rest == "-" else rest
    log_always(f"system prompt: {chat.conversation.system_prompt or 'none'}")


def retry(chat: ChatContext, rest: str) -> None:
    """Asks the last question again, with other draws."""
    if not chat.conversation.is_unanswered():
        chat.conversation.remove_last_answer()
    answer_question(chat)


def undo(chat: ChatContext, rest: str) -> None:
    """Takes the last question and its answer back."""
    log_always(f"taken back: {chat.conversation.remove_last_turn()}")


def set_parameter(chat: ChatContext, rest: str) -> None:
    """Shows the parameters, or sets one: /set temperature 0.2"""
    name, _, value = rest.partition(" ")
    value = value.strip()
    if name == "history_limit":
        limit = None if value.lower() in ("none", "null") else parameters.parse_parameter(name, value)
        chat.conversation.history_limit = limit
        log_always(f"history_limit {'none' if limit is None else limit}")
    elif name in parameters.NAMES:
        chat.sampling = parameters.with_parameter(chat.sampling, name, value)
        log_always(parameters.format_parameters(chat.sampling))
    elif name:
        set_template_argument(chat, name, value)
    else:
        limit = chat.conversation.history_limit
        log_always(parameters.format_parameters(chat.sampling))
        log_always(f"history_limit {'none' if limit is None else limit}")
        read = ", ".join(sorted(find_template_variables(chat))) or "none"
        log_always(f"chat template: {template_arguments.format_arguments(chat.template_arguments)} (it reads: {read})")


def set_template_argument(chat: ChatContext, name: str, value: str) -> None:
    """Set an argument of the chat template; ImpruverError for a name that neither it nor sampling knows."""
    key, known = template_arguments.KEY, find_template_variables(chat)
    if not (name == key or name.startswith(f"{key}.") or name in known or name in chat.template_arguments):
        names = (*parameters.NAMES, "history_limit", *sorted(known))
        hint = parameters.suggest_name(name, names)
        raise ImpruverError(f"no parameter {name}{hint}; there are {', '.join(names)}, and {key}.NAME")
    chat.template_arguments = template_arguments.set_argument(chat.template_arguments, name, value)
    log_always(f"chat template: {template_arguments.format_arguments(chat.template_arguments)}")
    unread = [name for name in chat.template_arguments if name not in known]
    if unread:
        log_always(f"note: the chat template does not read {', '.join(unread)}")


def find_template_variables(chat: ChatContext) -> frozenset[str]:
    """Find the arguments that the model's chat template reads."""
    return find_variables(chat.backend.tokenizer.template)


def switch_thinking(chat: ChatContext, rest: str) -> None:
    """Switches reasoning on or off, where the chat template can."""
    tokenizer, word = chat.backend.tokenizer, rest.lower()
    if word not in ("", "on", "off"):
        raise ImpruverError("/think on or /think off")
    known = find_template_variables(chat)
    switch = template_arguments.find_thinking_switch(known, tokenizer.encode)
    if switch is None:
        read = f"; it reads {', '.join(sorted(known))}, for /set" if known else ""
        raise ImpruverError(f"the model's chat template has no switch for reasoning{read}")
    if word:
        chat.template_arguments |= {switch.name: switch.on if word == "on" else switch.off}
    value = chat.template_arguments.get(switch.name)
    state = "on" if value == switch.on else "off" if value == switch.off else "as the chat template or recipe has it"
    log_always(f"reasoning: {state} ({switch.name})")


def resume(chat: ChatContext, rest: str) -> None:
    """Brings the last conversation back, or one of /resume list."""
    if rest.lower() == "list":
        list_conversations(chat)
        return
    if rest and not (rest.isdecimal() and int(rest[:9]) > 0):
        raise ImpruverError("/resume, /resume NUMBER or /resume list")
    saved = chat.archive.load(int(rest[:9] or 1))
    chat.archive.resume(saved)
    conversation, messages = chat.conversation, saved.messages
    has_system = messages[0]["role"] == "system"
    conversation.reset()
    conversation.system_prompt = messages[0]["content"] if has_system else None
    conversation.messages = list(messages[has_system:])
    log_always(f"resumed: {saved.describe()}")
    for turn in split_turns(conversation.messages)[-1:]:
        print_turn(turn)
    if conversation.is_unanswered():
        log_always("the last question has no answer yet; /retry asks it")


def print_turn(turn: list[dict]) -> None:
    """Print a turn of earlier: what was asked and said."""
    for message in turn:
        mark = {"user": "> ", "assistant": ""}.get(message["role"], f"{message['role']}: ")
        log_always(f"{mark}{message.get('content') or ''}")


def list_conversations(chat: ChatContext) -> None:
    """List the latest saved conversations."""
    rows = []
    for number, saved in enumerate(islice(chat.archive.read_all(), LISTED), 1):
        first = next((each["content"] for each in saved.messages if each["role"] == "user" and each["content"]), "")
        question = " ".join(first.split())
        short = question if len(question) <= LONGEST_LISTED else question[: LONGEST_LISTED - 1] + "…"
        rows.append((number, time.strftime("%Y-%m-%d %H:%M", time.localtime(saved.time)), short))
    log_always(format_table(("", "saved", "first question"), rows) if rows else "no conversation was saved yet")


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
    "/think [on|off]": switch_thinking,
    "/resume [NUMBER]": resume,
    "/save FILE": save,
    "/compare": toggle_compare,
    "/result TEXT": add_result,
    "/quit": request_quit,
}
COMMANDS = {usage.split()[0]: command for usage, command in USAGES.items()}
