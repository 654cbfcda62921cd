"""Show an answer as it is generated: as Markdown at a terminal, else as it is.

Rich renders each block of Markdown as lines. rich.live can't draw them here: once the window has another size it counts
lines that the terminal has wrapped anew, and shows text twice.
"""

from __future__ import annotations

import os
import re
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from os.path import commonprefix
from typing import TYPE_CHECKING

from impruver_core.cli.streams import write_stream

from impruver_chat.responses.stream_parser import REASONING

if TYPE_CHECKING:
    from markdown_it import MarkdownIt
    from rich.console import RenderableType

FASTEST, SLOWEST = 0.05, 0.5  # seconds between two drawings
SHARE = 80  # drawing may take one part in so many of the time
DIM, NORMAL = "\x1b[2m", "\x1b[0m"
CLEAR_LINE, CLEAR_BELOW = "\x1b[K", "\x1b[J"
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"
CODE_THEME = "ansi_dark"  # the terminal's own colours, on its own background
CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
DIRECTIONS = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))  # turn characters round
CONTROLS |= dict.fromkeys((ord("\r"), *DIRECTIONS), "")
LISTS = ("ordered_list_open", "bullet_list_open")
LIST_MARKER = re.compile(r" {0,3}(\d{1,9}[.)]?|[-+*])\s*")  # or the beginning of one
COLOUR = r"\x1b\[[0-9;]*m"
INVISIBLE = re.compile(rf"{COLOUR}|[\s\u2500-\u257f*_`~|#•-]+")  # colours, blanks, frames, marks of Markdown
COLOUR_OR_CHARACTER = re.compile(rf"{COLOUR}|.")
MARGIN = re.compile(rf"((?:{COLOUR})*)\s+")


def make_display(plain: bool) -> PlainDisplay | MarkdownDisplay:
    """Make a display of Markdown where stdout is a terminal that can do it, unless `plain`."""
    capable = sys.stdout.isatty() and os.environ.get("TERM") not in ("dumb", "unknown")
    return PlainDisplay() if plain or not capable else MarkdownDisplay()


class PlainDisplay:
    """Shows text as it is, on stdout; reasoning on stderr, dimmed at a terminal."""

    def __init__(self) -> None:
        self._kind = ""

    def feed(self, kind: str, piece: str) -> None:
        """Show a piece of REASONING or TEXT."""
        stream = sys.stderr if kind == REASONING else sys.stdout
        if self._kind == REASONING != kind:
            write_stream(sys.stderr, "\n")
        self._kind = kind
        piece = piece.translate(CONTROLS)
        if stream.isatty() and kind == REASONING and os.environ.get("TERM") != "dumb":
            piece = f"{DIM}{piece}{NORMAL}"
        write_stream(stream, piece)

    def finish(self) -> None:
        """End the answer: the next line is free."""
        if self._kind:
            write_stream(sys.stderr if self._kind == REASONING else sys.stdout, "\n")
        self._kind = ""


class MarkdownDisplay:
    """Shows Markdown; the lines of the last, unfinished block are drawn again as it grows, all others are final.

    Only lines that fit the screen are drawn again: those that have scrolled away can't be. Nor are those
    that were there when the window's size changed: some terminals wrap them then, others cut them.
    """

    def __init__(self) -> None:
        from rich.console import Console

        self._console = Console(file=sys.stdout, highlight=False)
        self._kind, self._text, self._due = "", "", 0.0
        self._live = [""]  # the lines that may change yet; the cursor stands in the last
        self._size = get_terminal_size()
        self._begin_block()
        self._render_lines("```python\nx = 1\n```")  # what rich imports for it would make the first word wait

    def feed(self, kind: str, piece: str) -> None:
        """Show a piece of REASONING or TEXT."""
        if kind != self._kind:
            self._finish_part([""])
            self._kind = kind
        self._text += piece.translate(CONTROLS)
        if time.monotonic() >= self._due:
            started = time.monotonic()
            with uninterrupted():
                self._draw()
            now = time.monotonic()
            self._due = now + min(max(FASTEST, SHARE * (now - started)), SLOWEST)

    def finish(self) -> None:
        """End the answer: the next line is free."""
        self._finish_part([])
        self._kind, self._due = "", 0.0

    def _begin_block(self) -> None:
        """Begin an unfinished block: its lines, how many of them are final, its text in final lines of another size."""
        self._drawn: list[str] = []
        self._final_count, self._text_above = 0, ""

    def _finish_part(self, gap: list[str]) -> None:
        if self._text.strip():
            self._adapt_to_size()
            finished, last = self._split_finished()
            self._replace_live(finished + self._render_rest(last) + gap, [""])
        self._text = ""
        self._begin_block()

    def _draw(self) -> None:
        self._adapt_to_size()
        finished, self._text = self._split_finished()
        lines = self._render_rest(self._text)
        scrolled = max(0, len(lines) - max(1, self._size.lines - 2))
        self._final_count += scrolled
        self._replace_live(finished + lines[:scrolled], lines[scrolled:] or [""])

    def _adapt_to_size(self) -> None:
        """In a window of another size what was drawn is final, but for a last line that still fits."""
        from rich.cells import cell_len

        if get_terminal_size() == self._size:
            return
        self._size = get_terminal_size()
        fits = cell_len(re.sub(COLOUR, "", self._live[-1])) < self._size.columns
        if not fits:
            write_stream(sys.stdout, "\n")
        self._text_above += visible_text("".join(self._drawn[: len(self._drawn) - fits]))
        self._live, self._drawn, self._final_count = self._live[-1:] if fits else [""], [], 0

    def _split_finished(self) -> tuple[list[str], str]:
        """The lines of the blocks that are finished, less those that are there; and the text of the unfinished one."""
        text = self._text
        *done, rest = re.split(r"\n\n+", text) if self._kind == REASONING else split_blocks(text)
        finished: list[str] = []
        for block in done:
            finished += [*self._render_rest(block), ""]
            self._begin_block()
        return finished, rest

    def _render_rest(self, text: str) -> list[str]:
        """Render a block, less its final lines."""
        self._drawn = lines_after(self._text_above, self._render_lines(text))
        return self._drawn[self._final_count :]

    def _render_lines(self, text: str) -> list[str]:
        from rich.text import Text

        rendered = Text(text.strip("\n"), style="dim") if self._kind == REASONING else render_markdown(text)
        with self._console.capture() as captured:
            columns = max(10, self._size.columns - 1)  # a full line would move the cursor on in some terminals
            self._console.print(rendered, width=columns)
        return strip_blank_lines([line.rstrip(" ") for line in captured.get().split("\n")])

    def _replace_live(self, final: list[str], live: list[str]) -> None:
        """Draw lines in place of those that may change; of the new ones only `live` may change from now on."""
        lines = final + live
        most = 0 if final else min(len(self._live), len(lines)) - 1
        same = next((row for row in range(most) if self._live[row] != lines[row]), most)
        up = len(self._live) - 1 - same
        back = f"\r\x1b[{up}A" if up else "\r"
        below = CLEAR_BELOW if len(lines) < len(self._live) else ""
        self._live = live
        # Where terminal and rich disagree about a line's width, it is cut and not wrapped: lines stay countable. Lines
        # are cleared one by one: some terminals keep a copy of a screen that is cleared as a whole.
        fixed = "".join(f"{CLEAR_LINE}{line}\n" for line in final)
        changed = "\n".join(CLEAR_LINE + line for line in live[same:])
        write_stream(sys.stdout, f"{back}{fixed}{NO_WRAP}{changed}{below}{WRAP}")


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Hold Ctrl+C back until the end: half a line on the screen can't be taken up again."""
    received: list[bool] = []
    before = signal.signal(signal.SIGINT, lambda *_: received.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if received:
        raise KeyboardInterrupt


def get_terminal_size() -> os.terminal_size:
    """The terminal's size now; COLUMNS and LINES may be of another one."""
    try:
        return os.get_terminal_size(sys.stdout.fileno())
    except OSError:
        return os.terminal_size((80, 24))


@cache
def make_parser() -> MarkdownIt:
    """Make a parser of Markdown without HTML: what a model writes as tags is text, and is to be seen."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def split_blocks(text: str) -> list[str]:
    """Split Markdown into blocks; nothing that comes can change any but the last."""
    tokens = [token for token in make_parser().parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    lines, borders = text.splitlines(keepends=True), [token.map[0] for token in tokens[1:]]
    if borders and tokens[-2].type in LISTS and LIST_MARKER.fullmatch("".join(lines[borders[-1] :])):
        borders.pop()  # it may yet become the list's next item
    return ["".join(lines[start:end]) for start, end in pairwise([0, *borders, None])]


def render_markdown(text: str) -> RenderableType:
    """Render Markdown for rich; line breaks stay where the model put them."""
    from rich.markdown import Markdown

    rendered = Markdown("", code_theme=CODE_THEME, hyperlinks=False)
    rendered.parsed = make_parser().parse(text)
    for token in rendered.parsed:
        for child in token.children or ():
            child.type = "hardbreak" if child.type == "softbreak" else child.type
    return rendered


def visible_text(line: str) -> str:
    """The characters of a line that are to be read, without colours, blanks, frames and marks of Markdown."""
    return INVISIBLE.sub("", line)


def strip_blank_lines(lines: list[str]) -> list[str]:
    """Strip the empty lines at both ends; one line is left at least."""
    filled = [row for row, line in enumerate(lines) if re.sub(COLOUR, "", line).strip()]
    return lines[filled[0] : filled[-1] + 1] if filled else lines[:1]


def lines_after(above: str, lines: list[str]) -> list[str]:
    """The lines less the visible text that stands above them already."""
    count = len(commonprefix([above, visible_text("".join(lines))]))  # noqa: RUF071 (no paths)
    if not count:
        return lines
    for row, line in enumerate(lines):
        length = len(visible_text(line))
        if length >= count:
            rest = [_cut_visible(line, count)] if length > count else []
            return strip_blank_lines(rest + lines[row + 1 :])
        count -= length
    return []


def _cut_visible(line: str, count: int) -> str:
    """Cut so many visible characters off the beginning of a line; its colours stay."""
    rest = ""
    for piece in COLOUR_OR_CHARACTER.findall(line):
        if re.match(COLOUR, piece) or not count:
            rest += piece
        else:
            count -= bool(visible_text(piece))
    return MARGIN.sub(r"\1", rest, count=1) if MARGIN.match(rest) else rest
