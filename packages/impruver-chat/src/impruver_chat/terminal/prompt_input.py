"""Read a person's questions: with prompt-toolkit at a terminal (history, several lines), else lines of stdin."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from impruver_core.cli.console import warn
from impruver_core.cli.stop_signals import SIGHUP, make_exception
from impruver_core.cli.streams import write_stream
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import get_cache_dir

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.application import Application
    from prompt_toolkit.history import History
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.key_binding.key_processor import KeyPress

MARK = "> "
NOT_TEXT = "not asked: this line is not UTF-8"
CONTINUATION = "\\"  # at a line's end: the question goes on in the next


class PromptReader(Protocol):
    """Reads questions."""

    def read(self) -> str | None:
        """Read the next question; None at the end of the input and at Ctrl+C."""

    def discard_typed_lines(self) -> None:
        """Discard the lines that were typed ahead; called where Ctrl+C stopped what was done meanwhile."""


class PipedReader:
    """Reads lines of stdin as they are; see `PromptReader`. `mark` goes to stderr before each."""

    def __init__(self, mark: str = ""):
        self._mark = mark

    def read(self) -> str | None:
        """Read the next question; see `PromptReader`."""
        return read_piped(self._mark)

    def discard_typed_lines(self) -> None:
        """Nothing: a terminal's driver has discarded them at Ctrl+C, and what a pipe holds was not typed ahead."""


class EditedReader:
    """Reads questions with prompt-toolkit's session; see `PromptReader`."""

    def __init__(self, session: PromptSession):
        self._session = session

    def read(self) -> str | None:
        """Read the next question; see `PromptReader`."""
        return read_edited(self._session)

    def discard_typed_lines(self) -> None:
        """Discard what was typed up to the last Enter; what follows it is there for the next prompt, Ctrl+D as well."""
        from prompt_toolkit.input.typeahead import store_typeahead
        from prompt_toolkit.input.vt100_parser import Vt100Parser

        unfinished = re.split(rb"[\r\n]", read_typed())[-1]
        keys: list[KeyPress] = []
        parser = Vt100Parser(keys.append)
        parser.feed(unfinished.decode("utf-8", "surrogateescape"))
        parser.flush()
        store_typeahead(self._session.input, keys)


@contextmanager
def open_reader(commands: Iterable[str]) -> Iterator[PromptReader]:
    """Open a reader of questions: with prompt-toolkit at a terminal that can do it, else of the lines of stdin."""
    if not sys.stdin.isatty():
        yield PipedReader()
    elif not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield PipedReader(MARK)
    else:
        session = make_editor(commands)
        with without_echo():
            yield EditedReader(session)


def read_typed() -> bytes:
    """Read what was typed at the terminal and not read yet, unfinished lines too, without waiting for more."""
    if os.name != "posix":
        return b""
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    first, second, third, local, *others, characters = before
    characters = list(characters)
    characters[termios.VMIN] = characters[termios.VTIME] = 0
    termios.tcsetattr(descriptor, termios.TCSANOW, [first, second, third, local & ~termios.ICANON, *others, characters])
    try:
        return b"".join(iter(lambda: os.read(descriptor, 4096), b""))
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)


def read_edited(session: PromptSession) -> str | None:
    """Read the next question by prompt-toolkit's session."""
    try:
        with exiting_on_signal(session.app) as begun:
            text = session.prompt(MARK, pre_run=begun)
        text.encode()
    except (KeyboardInterrupt, EOFError):
        return None
    except UnicodeEncodeError:  # what prompt-toolkit makes of bytes that are no text
        warn(NOT_TEXT)
        return ""
    return text


def read_piped(mark: str = "") -> str | None:
    """Read the next question from stdin as it is; `mark` goes to stderr first."""
    lines: list[str] = []
    while (line := _read_line(mark)) is not None:
        lines.append(line.removesuffix(CONTINUATION))
        if not line.endswith(CONTINUATION):
            break
    return "\n".join(lines) if lines else None


def _read_line(mark: str) -> str | None:
    write_stream(sys.stderr, mark)
    try:
        line = sys.stdin.buffer.readline()
    except KeyboardInterrupt:
        line = b""
    if not line:
        write_stream(sys.stderr, "\n" if mark else "")
        return None
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        if not mark:
            raise ImpruverError(f"standard input: a line is not UTF-8 (byte {error.start + 1} of it)") from None
        warn(NOT_TEXT)
        return ""


def make_editor(commands: Iterable[str]) -> PromptSession:
    """Make prompt-toolkit's session, on stderr: stdout may be a file."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    return PromptSession(
        history=open_history(),
        key_bindings=make_key_bindings(),
        multiline=True,
        prompt_continuation="  ",
        completer=WordCompleter(sorted(commands), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
        output=create_output(stdout=sys.stderr),
    )


def make_key_bindings() -> KeyBindings:
    """Make the keys: Enter asks, behind a backslash it makes a new line; so does Alt+Enter, that is Esc and Enter."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if not buffer.document.text_before_cursor.endswith(CONTINUATION):
            buffer.validate_and_handle()
            return
        buffer.delete_before_cursor()
        buffer.newline(copy_margin=False)

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.newline(copy_margin=False)

    return keys


def open_history() -> History:
    """Open the history of earlier sessions; where it can't be kept, a warning, and that of this session alone."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    class PromptHistory(FileHistory):
        def store_string(self, string: str) -> None:
            try:
                super().store_string(string)
            except OSError as error:
                warn(f"not kept for the next session: {path}: {error.strerror}")

    try:
        path = get_cache_dir() / "chat_history"
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))  # questions are nobody else's business
    except ImpruverError as error:  # no home
        warn(f"{error}: questions are not kept for the next session")
    except OSError as error:
        warn(f"{path}: {error.strerror}: questions are not kept for the next session; set IMPRUVER_CACHE to a folder")
    else:
        return PromptHistory(str(path))
    return InMemoryHistory()


@contextmanager
def exiting_on_signal(app: Application) -> Iterator[Callable[[], None]]:
    """End prompt-toolkit's loop on SIGTERM and SIGHUP, in an orderly way: raised within it they would be lost there.

    Yields a function to be called when the loop has begun: the signal may have come before.
    """
    received: list[int] = []

    def exit_app(number: int, _: Any) -> None:
        received.append(number)
        if app.loop is not None:
            app.loop.call_soon_threadsafe(end_loop)

    def end_loop() -> None:
        if received and app.future is not None and not app.is_done:
            app.exit(exception=EOFError())

    numbers = (number for number in (signal.SIGTERM, SIGHUP) if number and signal.getsignal(number) != signal.SIG_IGN)
    before = {number: signal.signal(number, exit_app) for number in numbers}
    try:
        yield end_loop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if received:
            raise make_exception(received[0])


@contextmanager
def without_echo() -> Iterator[None]:
    """Keep what is typed meanwhile out of the answer; it is there for the next prompt, Ctrl+D as well."""
    if not sys.stdin.isatty() or os.name != "posix":
        yield
        return
    import termios

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    *others, local, in_speed, out_speed, characters = before
    characters = list(characters)
    characters[termios.VEOF] = os.fpathconf(descriptor, "PC_VDISABLE")
    local = local & ~termios.ECHO | termios.NOFLSH  # Ctrl+C takes nothing of it away
    termios.tcsetattr(descriptor, termios.TCSANOW, [*others, local, in_speed, out_speed, characters])
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSANOW, before)
