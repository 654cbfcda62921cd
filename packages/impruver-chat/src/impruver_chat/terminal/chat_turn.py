"""One conversation: who talks, and how an answer is asked for, shown and kept."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from impruver_core.cli.console import log_always, log_info, warn
from impruver_core.errors import RefusedError

from impruver_chat.backends.base import Backend, Prompt
from impruver_chat.conversation import Asked, NoAnswer, Session
from impruver_chat.generation.parameters import Sampling
from impruver_chat.responses.stream_parser import Speech, calls_of
from impruver_chat.responses.tool_call_parser import described
from impruver_chat.terminal.display import Page, Plain
from impruver_chat.terminal.interrupts import uninterrupted


@dataclass
class Talk:
    """A conversation's parts. `seed` is the next answer's; `compare` asks without the adapter, too."""

    session: Session
    backend: Backend
    sampling: Sampling
    seed: int
    screen: Plain | Page
    compare: bool = False


Command = Callable[[Talk, str], None]


def ask(talk: Talk, text: str) -> None:
    """Asks a question."""
    talk.session.ask(text)
    answer(talk)


def answer(talk: Talk) -> None:
    """Has the model answer what was said; the answer is shown as it comes, and becomes part of the session."""
    session = talk.session
    prompt = prompt_of(talk)
    if prompt and talk.compare:
        log_always("with the adapter:")
    message, stopped = shown(talk, prompt) if prompt else (None, False)
    if message is None:
        session.take_last()
        return
    session.answer(message)
    for call in calls_of(message):
        log_always(f"function call: {described(call)}")
    if talk.compare and not stopped:
        log_always("without it:")
        with talk.backend.without_adapter():
            shown(talk, prompt)
    if session.waiting():
        log_always("/result TEXT gives the function's response")


def prompt_of(talk: Talk) -> Prompt | None:
    """What the model is given for the session as it is; None, and a warning, where it can't be asked so."""
    session, backend, wanted, seed = talk.session, talk.backend, talk.sampling.max_new_tokens, talk.seed
    talk.seed += 1
    try:
        asked = session.prompt(backend.encode, backend.context, wanted)
    except (RefusedError, NoAnswer, KeyboardInterrupt) as error:
        warn(f"not asked: {str(error) or 'stopped'}")
        return None
    tell_trimmed(asked, session, backend.context)
    if asked.room < wanted:
        log_info(f"note: the context leaves {asked.room} tokens for the answer")
    return Prompt(asked.ids, asked.room, seed)


def shown(talk: Talk, prompt: Prompt) -> tuple[dict | None, bool]:
    """Shows an answer as it comes; (its message, whether Ctrl+C stopped it), no message if before the first word."""
    speech, stopped, told = Speech(talk.backend.marks, talk.screen.put), False, []

    def emit(piece: str) -> None:
        told.append(True)
        speech.put(piece)

    try:
        talk.backend.stream(prompt, talk.sampling, emit)
    except KeyboardInterrupt:
        stopped = True
    with suppress(KeyboardInterrupt), uninterrupted():  # Ctrl+C once more says nothing new
        message = speech.end()
        talk.screen.end()
    if stopped:
        log_always("(stopped)" if told else "(stopped before the first word: the question is taken back)")
    elif not told:
        log_always("(the model said nothing)")
    return (message if told or not stopped else None), stopped


def tell_trimmed(asked: Asked, session: Session, context: int | None) -> None:
    """Says that the oldest messages are no longer asked with."""
    reasons = [
        (asked.by_limit, f"chat.history_limit is {session.history_limit}"),
        (asked.by_context, f"the model's context is {context} tokens"),
    ]
    for count, reason in reasons:
        if count:
            log_info(f"note: the {count} oldest messages are forgotten: {reason}")
