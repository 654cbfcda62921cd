"""What a person types: with prompt-toolkit at a terminal (history, several lines), else lines of stdin."""

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.cli.tool import Terminated
from impruver_core.errors import ImpruverError

MARK = "> "
NOT_TEXT = "not asked: this line is not UTF-8"
MORE = "\\"  # at a line's end: the question goes on in the next


@contextmanager
def reader(commands: Iterable[str]) -> Iterator[Callable[[], str | None]]:
    """A function that gives the next question; None at the end of the input and at Ctrl+C."""
    if not sys.stdin.isatty():
        yield piped
    elif not sys.stderr.isatty() or os.environ.get("TERM") in ("dumb", "unknown"):
        yield lambda: piped(MARK)
    else:
        session = editor(commands)
        with keys_unseen():
            yield lambda: edited(session)


def edited(session: Any) -> str | None:
    """The next question of prompt-toolkit's session."""
    try:
        with leaving(session.app) as begun:
            text = session.prompt(MARK, pre_run=begun)
        text.encode()
    except (KeyboardInterrupt, EOFError):
        return None
    except UnicodeEncodeError:  # what prompt-toolkit makes of bytes that are no text
        warn(NOT_TEXT)
        return ""
    return text


@contextmanager
def leaving(app: Any) -> Iterator[Callable[[], None]]:
    """SIGTERM ends prompt-toolkit's loop in an orderly way: raised within it, it would be caught and lost there.

    What is given is to be called when the loop has begun: the signal may have come before.
    """
    came: list[bool] = []

    def leave(*_: Any) -> None:
        came.append(True)
        if app.loop is not None:
            app.loop.call_soon_threadsafe(end)

    def end() -> None:
        if came and app.future is not None and not app.is_done:
            app.exit(exception=EOFError())

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield end
    finally:
        signal.signal(signal.SIGTERM, before)
        if came:
            raise Terminated


def piped(mark: str = "") -> str | None:
    """The next question of stdin as it is; `mark` goes to stderr first."""
    lines: list[str] = []
    while (line := _line(mark)) is not None:
        lines.append(line.removesuffix(MORE))
        if not line.endswith(MORE):
            break
    return "\n".join(lines) if lines else None


def _line(mark: str) -> str | None:
    try:
        sys.stderr.write(mark)
        sys.stderr.flush()
        line = sys.stdin.buffer.readline()
    except KeyboardInterrupt:
        line = b""
    if not line:
        if mark:
            sys.stderr.write("\n")
        return None
    try:
        return line.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        if not mark:
            raise ImpruverError(f"standard input: a line is not UTF-8 (byte {error.start + 1} of it)") from None
        warn(NOT_TEXT)
        return ""


def editor(commands: Iterable[str]) -> Any:
    """prompt-toolkit's session, on stderr: stdout may be a file."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    return PromptSession(
        history=history(),
        key_bindings=keys(),
        multiline=True,
        prompt_continuation="  ",
        completer=WordCompleter(sorted(commands), sentence=True),
        complete_while_typing=False,
        complete_style=CompleteStyle.READLINE_LIKE,
        reserve_space_for_menu=0,
        output=create_output(stdout=sys.stderr),
    )


def keys() -> Any:
    """Enter asks, behind a backslash it makes a new line; so does Alt+Enter, that is Esc and Enter."""
    from prompt_toolkit.key_binding import KeyBindings

    bound = KeyBindings()

    @bound.add("enter")
    def _(event: Any) -> None:
        buffer = event.current_buffer
        if not buffer.document.text_before_cursor.endswith(MORE):
            buffer.validate_and_handle()
            return
        buffer.delete_before_cursor()
        buffer.newline(copy_margin=False)

    @bound.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.newline(copy_margin=False)

    return bound


def history_file() -> Path:
    """Where the questions of all conversations are kept: the folder of caches."""
    folder = Path(os.environ.get("IMPRUVER_CACHE") or Path.home() / ".cache" / "impruver").expanduser()
    return folder / "chat_history"


def history() -> Any:
    """The history of earlier sessions; where it can't be kept that is a warning, and this session's alone is there."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    try:
        path = history_file()
    except RuntimeError as error:  # ~ of nobody
        warn(f"IMPRUVER_CACHE: {error}: questions are not kept for the next session")
        return InMemoryHistory()

    class Kept(FileHistory):
        def store_string(self, string: str) -> None:
            try:
                super().store_string(string)
            except OSError as error:
                warn(f"not kept for the next session: {path}: {error.strerror}")

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o600))  # questions are nobody else's business
    except OSError as error:
        warn(f"{path}: {error.strerror}: questions are not kept for the next session; set IMPRUVER_CACHE to a folder")
        return InMemoryHistory()
    return Kept(str(path))


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Ctrl+C waits until what is done here is done: half a line on the screen can't be taken up again."""
    came: list[bool] = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt


@contextmanager
def keys_unseen() -> Iterator[None]:
    """What is typed meanwhile is not echoed into the answer; it is there for the next prompt, Ctrl+D as well."""
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
