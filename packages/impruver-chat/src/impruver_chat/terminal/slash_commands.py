"""What can be done in a conversation besides asking: each command is a function of the talk and of what follows it."""

from pathlib import Path

from impruver_core.cli.console import log_always, warn
from impruver_core.errors import ImpruverError
from impruver_core.io.jsonl import format_row

from impruver_chat.generation.parameters import changed, described, near, value_of
from impruver_chat.terminal.chat_turn import Command, Talk, answer

NONE = "-"  # as the text of /system


class Leave(Exception):
    """The conversation is over."""


def run(talk: Talk, name: str, rest: str) -> None:
    """Does what a command says; a wrong name or value is a warning, and nothing else happens."""
    if name not in COMMANDS:
        warn(f"no command {name}{near(name, COMMANDS)}; /help lists them")
        return
    try:
        COMMANDS[name](talk, rest.strip())
    except ImpruverError as error:
        if error.exit_code != 2:
            raise
        warn(str(error))


def help_(talk: Talk, rest: str) -> None:
    """Lists the commands and keys."""
    width = max(map(len, USAGES))
    lines = [f"{usage:{width}}  {command.__doc__}" for usage, command in USAGES.items()]
    lines += ["A new line in a question: Alt+Enter (Esc, then Enter), or \\ and then Enter."]
    lines += ["Ctrl+C stops an answer; at the prompt it leaves, as Ctrl+D does."]
    log_always("\n".join(lines))


def reset(talk: Talk, rest: str) -> None:
    """Forgets all that was said, but for the system prompt."""
    talk.session.reset()
    log_always("forgotten")


def system(talk: Talk, rest: str) -> None:
    """Shows or sets the system prompt; - removes it."""
    if rest:
        talk.session.system_prompt = None if rest == NONE else rest
    log_always(f"system prompt: {talk.session.system_prompt or 'none'}")


def retry(talk: Talk, rest: str) -> None:
    """Asks the last question again, with other draws."""
    talk.session.take_answer()
    answer(talk)


def undo(talk: Talk, rest: str) -> None:
    """Takes the last question and its answer back."""
    log_always(f"taken back: {talk.session.take_back()}")


def set_(talk: Talk, rest: str) -> None:
    """Shows the parameters, or sets one: /set temperature 0.2"""
    name, _, value = rest.partition(" ")
    if name == "history_limit":
        talk.session.history_limit = value_of(name, value)
        log_always(f"history_limit {talk.session.history_limit}")
        return
    if rest:
        talk.sampling = changed(talk.sampling, name, value.strip())
    log_always(described(talk.sampling))


def save(talk: Talk, rest: str) -> None:
    """Appends the conversation to a file, as a JSONL row."""
    if not rest:
        raise ImpruverError("name a file: /save FILE")
    if not talk.session.messages:
        raise ImpruverError("nothing was said yet")
    path, row = Path(rest), format_row({"messages": talk.session.whole()}) + "\n"
    try:
        path = path.expanduser()
        with path.open("a+b") as file:
            file.seek(max(file.seek(0, 2) - 1, 0))
            ends = file.read(1) in (b"", b"\n")
            file.write((row if ends else f"\n{row}").encode())
    except (OSError, RuntimeError, ValueError) as error:  # no home, no name, nothing that can be appended to
        raise ImpruverError(f"{path}: {getattr(error, 'strerror', None) or error}") from None
    log_always(f"appended {len(talk.session.whole())} messages to {path}")


def compare(talk: Talk, rest: str) -> None:
    """Answers with the adapter and without it, or no longer."""
    if talk.backend.alone:
        raise ImpruverError(talk.backend.alone)
    talk.compare = not talk.compare
    log_always("answers with the adapter and without it" if talk.compare else "answers with the adapter alone")


def result(talk: Talk, rest: str) -> None:
    """Gives the response of a function that the model called."""
    if not rest:
        raise ImpruverError("give the response, too: /result TEXT")
    left = talk.session.respond(rest)
    if left:
        log_always(f"{left} more of the calls wait for a response")
        return
    answer(talk)


def quit_(talk: Talk, rest: str) -> None:
    """Leaves."""
    raise Leave


USAGES: dict[str, Command] = {
    "/help": help_,
    "/reset": reset,
    "/system [TEXT]": system,
    "/retry": retry,
    "/undo": undo,
    "/set [NAME VALUE]": set_,
    "/save FILE": save,
    "/compare": compare,
    "/result TEXT": result,
    "/quit": quit_,
}


COMMANDS = {usage.split()[0]: command for usage, command in USAGES.items()}
