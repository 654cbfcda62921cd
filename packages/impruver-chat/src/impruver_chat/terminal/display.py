"""Shows an answer as it comes: as Markdown at a terminal, else as it is."""

import os
import sys
import time

from impruver_core.cli.console import write_stream

from impruver_chat.responses.stream_parser import REASONING
from impruver_chat.terminal.ansi_text import lines_after, measure_width, strip_blank_lines, visible_text
from impruver_chat.terminal.interrupts import uninterrupted
from impruver_chat.terminal.markdown import (
    render_dimmed,
    render_markdown,
    replace_controls,
    split_blocks,
    split_paragraphs,
)

FASTEST, SLOWEST = 0.05, 0.5  # seconds between two drawings
SHARE = 80  # drawing may take one part in so many of the time
DIM, NORMAL = "\x1b[2m", "\x1b[0m"
CLEAR_LINE, CLEAR_BELOW = "\x1b[K", "\x1b[J"
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"


def make_display(plain: bool) -> "PlainDisplay | MarkdownDisplay":
    """Markdown where stdout is a terminal that can do it, unless `plain`."""
    capable = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return PlainDisplay() if plain or not capable else MarkdownDisplay()


class PlainDisplay:
    """Shows text as it is, on stdout; reasoning on stderr, dimmed at a terminal."""

    def __init__(self) -> None:
        self._kind = ""

    def feed(self, kind: str, piece: str) -> None:
        """Shows a piece of REASONING or TEXT."""
        stream = sys.stderr if kind == REASONING else sys.stdout
        if self._kind == REASONING != kind:
            write_stream(sys.stderr, "\n")
        self._kind = kind
        if stream.isatty():
            piece = replace_controls(piece)
            piece = f"{DIM}{piece}{NORMAL}" if kind == REASONING and os.environ.get("TERM") != "dumb" else piece
        write_stream(stream, piece)

    def finish(self) -> None:
        """Nothing more comes; the next line is free."""
        if self._kind:
            write_stream(sys.stderr if self._kind == REASONING else sys.stdout, "\n")
        self._kind = ""


class MarkdownDisplay:
    """Markdown in lines. Those of the last, unfinished block are drawn anew as it grows; all others are there for good.

    Only lines that fit the screen are ever drawn anew: what has scrolled away can't be. Nor are those that stood there
    when the window's size changed: some terminals wrap them then, others cut them.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stdout, highlight=False)
        self._kind, self._text = "", ""
        self._live = [""]  # the lines that may change yet; the cursor stands in the last
        self._size = get_terminal_size()
        self._begin()
        self._due = 0.0
        self._lines("```python\nx = 1\n```")  # what rich imports for it would make the first word wait

    def feed(self, kind: str, piece: str) -> None:
        """As `PlainDisplay.feed`."""
        if kind != self._kind:
            self._finish([""])
            self._kind = kind
        self._text += replace_controls(piece)
        if time.monotonic() >= self._due:
            started = time.monotonic()
            with uninterrupted():
                self._draw()
            now = time.monotonic()
            self._due = now + min(max(FASTEST, SHARE * (now - started)), SLOWEST)

    def finish(self) -> None:
        """As `PlainDisplay.finish`."""
        self._finish([])
        self._kind, self._due = "", 0.0

    def _begin(self) -> None:
        """An unfinished block begins: its lines, how many are there for good, and what stands in others above them."""
        self._drawn: list[str] = []
        self._fixed, self._above = 0, ""

    def _finish(self, gap: list[str]) -> None:
        if self._text.strip():
            self._fit()
            settled, last = self._settled()
            self._replace(settled + self._left(last) + gap, [""])
        self._text = ""
        self._begin()

    def _draw(self) -> None:
        self._fit()
        settled, self._text = self._settled()
        lines = self._left(self._text)
        over = max(0, len(lines) - max(1, self._size.lines - 2))
        self._fixed += over
        self._replace(settled + lines[:over], lines[over:] or [""])

    def _fit(self) -> None:
        """In a window of another size what was drawn stays; of it only a last line that still fits may change yet."""
        if get_terminal_size() == self._size:
            return
        self._size = get_terminal_size()
        fits = measure_width(self._live[-1]) < self._size.columns
        if not fits:
            write_stream(sys.stdout, "\n")
        self._above += visible_text("".join(self._drawn[: len(self._drawn) - fits]))
        self._live, self._drawn, self._fixed = self._live[-1:] if fits else [""], [], 0

    def _settled(self) -> tuple[list[str], str]:
        """(the lines of the blocks that are finished, less those that are there; the unfinished block)."""
        *done, rest = (split_paragraphs if self._kind == REASONING else split_blocks)(self._text)
        settled: list[str] = []
        for block in done:
            settled += [*self._left(block), ""]
            self._begin()
        return settled, rest

    def _left(self, text: str) -> list[str]:
        """A block's lines less those that are there for good."""
        self._drawn = lines_after(self._above, self._lines(text))
        return self._drawn[self._fixed :]

    def _lines(self, text: str) -> list[str]:
        with self._console.capture() as captured:
            columns = max(10, self._size.columns - 1)  # a full line would move the cursor on in some terminals
            self._console.print((render_dimmed if self._kind == REASONING else render_markdown)(text), width=columns)
        return strip_blank_lines([line.rstrip(" ") for line in captured.get().split("\n")])

    def _replace(self, settled: list[str], live: list[str]) -> None:
        """Puts lines in the place of those that may change; of the new ones only `live` may change from now on."""
        wanted = settled + live
        most = 0 if settled else min(len(self._live), len(wanted)) - 1
        same = next((at for at in range(most) if self._live[at] != wanted[at]), most)
        up = len(self._live) - 1 - same
        back = f"\r\x1b[{up}A" if up else "\r"
        below = CLEAR_BELOW if len(wanted) < len(self._live) else ""
        self._live = live
        # Where terminal and rich disagree about a line's width, it is cut and not wrapped: lines stay countable. Lines
        # are cleared one by one: some terminals keep a copy of a screen that is cleared as a whole.
        fixed = "".join(f"{CLEAR_LINE}{line}\n" for line in settled)
        lines = "\n".join(CLEAR_LINE + line for line in live[same:])
        write_stream(sys.stdout, f"{back}{fixed}{NO_WRAP}{lines}{below}{WRAP}")


def get_terminal_size() -> os.terminal_size:
    """Of the terminal as it is now; COLUMNS and LINES may be of another one."""
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return os.terminal_size((80, 24))
