"""A conversation at a terminal or through pipes: questions by line, answers on stdout, all else on stderr."""

import re
import sys
from contextlib import suppress
from io import TextIOWrapper

from impruver_core.cli.console import log_info

from impruver_chat.backends.base import Backend
from impruver_chat.conversation import Session
from impruver_chat.generation.parameters import Sampling
from impruver_chat.terminal.chat_turn import Talk, ask
from impruver_chat.terminal.display import screen
from impruver_chat.terminal.prompt_input import reader
from impruver_chat.terminal.slash_commands import COMMANDS, Leave, run

COMMAND = re.compile(r"(/[A-Za-z_]+(?!\S)|/[/\s]*\Z)(.*)", re.DOTALL)  # neither a path nor a line of code


def converse(session: Session, backend: Backend, sampling: Sampling, seed: int, plain: bool, compare: bool) -> None:
    """Asks and answers until the input ends or Ctrl+C comes at the prompt; Ctrl+C while it answers stops the answer."""
    log_info("Ctrl+D leaves, /help lists the commands")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding
    talk = Talk(session, backend, sampling, seed, screen(plain), compare)
    with suppress(Leave, KeyboardInterrupt), reader(COMMANDS) as read:  # Ctrl+C at an answer is the answer's
        while (text := read()) is not None:
            text = text.strip()
            if command := COMMAND.fullmatch(text):
                run(talk, command[1], command[2])
            elif text:
                ask(talk, text)
