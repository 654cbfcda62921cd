"""A conversation: questions by line, answers on stdout, all else on stderr, until the input ends."""

import re
import sys
from contextlib import suppress
from io import TextIOWrapper

from impruver_core.cli.console import log_info

from impruver_chat.backends.base import Backend
from impruver_chat.conversation import Conversation
from impruver_chat.generation.prompt import SamplingParams
from impruver_chat.terminal.archive import ConversationArchive
from impruver_chat.terminal.commands import COMMANDS, QuitRequest, run_command
from impruver_chat.terminal.display import make_display
from impruver_chat.terminal.prompt_input import open_reader
from impruver_chat.terminal.turns import ChatContext, answer_question

COMMAND = re.compile(r"(/[A-Za-z_][A-Za-z_-]*(?!\S)|/\?(?!\S)|/[/\s]*\Z)(.*)", re.DOTALL)  # no path, no line of code
QUIT_WORDS = ("exit", "quit")  # alone in a line, as other programs have it


def run_conversation(
    conversation: Conversation,
    backend: Backend,
    sampling: SamplingParams,
    seed: int,
    plain: bool,
    compare: bool,
    model: str,
) -> None:
    """Ask and answer until the input ends or Ctrl+C comes at the prompt; during an answer Ctrl+C stops the answer.

    BackendEndedError, after what was shown of the answer, where there can be no more answers. `model` is the name under
    which the conversation is saved.
    """
    log_info("Ctrl+D leaves, /help lists the commands")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal of another encoding
    archive, display = ConversationArchive(model), make_display(plain)
    with suppress(QuitRequest, KeyboardInterrupt), open_reader(COMMANDS) as reader:
        chat = ChatContext(conversation, backend, sampling, seed, display, reader, archive, compare)
        while (text := reader.read()) is not None:
            run_line(chat, text.strip())
            archive.save(conversation)


def run_line(chat: ChatContext, text: str) -> None:
    """Run a command, or ask a question; QuitRequest where the person leaves."""
    if text.lower() in QUIT_WORDS:
        raise QuitRequest
    if command := COMMAND.fullmatch(text):
        run_command(chat, command[1], command[2])
    elif text:
        chat.conversation.add_question(text)
        answer_question(chat)
