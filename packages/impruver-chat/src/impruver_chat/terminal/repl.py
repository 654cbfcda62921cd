"""Talk at a terminal or through pipes: questions by line, answers on stdout, all else on stderr."""

import re
import sys
from contextlib import suppress
from io import TextIOWrapper

from impruver_core.cli.console import log_info

from impruver_chat.backends.base import Backend
from impruver_chat.conversation import Conversation
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.terminal.chat_turn import ChatContext, answer_question
from impruver_chat.terminal.display import make_display
from impruver_chat.terminal.prompt_input import open_reader
from impruver_chat.terminal.slash_commands import COMMANDS, QuitRequest, run_command

COMMAND = re.compile(r"(/[A-Za-z_]+(?!\S)|/[/\s]*\Z)(.*)", re.DOTALL)  # neither a path nor a line of code


def run_conversation(
    conversation: Conversation, backend: Backend, sampling: SamplingParams, seed: int, plain: bool, compare: bool
) -> None:
    """Ask and answer until the input ends or Ctrl+C comes at the prompt; during an answer Ctrl+C stops the answer."""
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
                conversation.add_question(text)
                answer_question(chat)
