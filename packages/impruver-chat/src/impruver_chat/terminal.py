"""A conversation at a terminal or through pipes: questions by line, answers on stdout, all else on stderr."""

import re
import sys
from collections.abc import Callable
from io import TextIOWrapper

from impruver_core.cli.console import say, silence, warn
from impruver_core.errors import ImpruverError, RefusedError

from impruver_chat.backends import Backend, Prompt
from impruver_chat.sampling import Sampling
from impruver_chat.session import NoAnswer, Session, room_for

COMMANDS: dict[str, Callable[[Session], str]] = {}
MARK = "> "


def converse(session: Session, backend: Backend, sampling: Sampling, seed: int) -> None:
    """Asks and answers until the input ends or Ctrl+C comes at the prompt; Ctrl+C while it answers stops the answer."""
    say("Ctrl+D leaves, /reset forgets what was said")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding
    number = 0
    while (text := next_line()) is not None:
        text = text.strip()
        if not text:
            continue
        if re.fullmatch(r"/[a-z]+", text):
            say(COMMANDS[text](session) if text in COMMANDS else f"no command {text}; there is {', '.join(COMMANDS)}")
            continue
        number += 1
        try:
            answer(session, backend, sampling, seed + number - 1, text)
        except (RefusedError, NoAnswer) as error:
            session.take_back()
            warn(f"not asked: {error}")


def answer(session: Session, backend: Backend, sampling: Sampling, seed: int, text: str) -> None:
    """Asks the model and shows its answer as it comes; both become part of the session."""
    pieces: list[str] = []

    def emit(piece: str) -> None:
        pieces.append(piece)
        show(piece)

    try:
        told_out(session.ask(text), f"chat.history_limit is {session.history_limit}")
        ids, dropped = session.prompt(backend.encode, backend.context, sampling.max_new_tokens)
        told_out(dropped, f"the model's context is {backend.context} tokens")
        room = room_for(ids, backend.context, sampling.max_new_tokens)
        if room < sampling.max_new_tokens:
            say(f"note: the context leaves {room} tokens for the answer")
        backend.stream(Prompt(ids, room, seed), sampling, emit)
        if not pieces:
            say("(the model said nothing)")
    except KeyboardInterrupt:
        say("\n(stopped)")
    if pieces:
        show("\n")
    session.answer("".join(pieces))


def told_out(messages: int, reason: str) -> None:
    """Says that the oldest messages were put out of the conversation."""
    if messages:
        say(f"note: the {messages} oldest messages are forgotten: {reason}")


def next_line() -> str | None:
    """The next line of stdin; None at its end, at Ctrl+C, and where stdin is closed."""
    if sys.stdin is None:
        return None
    at_terminal = sys.stdin.isatty()
    try:
        if at_terminal:
            sys.stderr.write(MARK)
            sys.stderr.flush()
        line = sys.stdin.buffer.readline()
    except KeyboardInterrupt:
        line = b""
    if not line:
        if at_terminal:
            sys.stderr.write("\n")
        return None
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        if not at_terminal:
            raise ImpruverError(f"standard input: a line is not UTF-8 (byte {error.start + 1} of it)") from None
        warn("not asked: this line is not UTF-8")
        return ""


def show(text: str) -> None:
    """A piece of an answer, at once; a reader that went away gets nothing more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        silence(sys.stdout)


def _reset(session: Session) -> str:
    session.reset()
    return "forgotten"


COMMANDS["/reset"] = _reset
