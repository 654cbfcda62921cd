"""What a tool prints: results on stdout, all else on stderr; progress with the time left; tables.

A reader that goes away (`… | head`) never stops the work: what would be written to it is dropped. Names and texts come
from strangers: what a terminal would obey, or what would turn the order of characters, is shown and not sent.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

from impruver_core.cli.streams import write_stream

if TYPE_CHECKING:
    from tqdm import tqdm

# Control characters but for line ends and tabs, marks of direction, and surrogates, as in names that are no UTF-8.
HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
COLOUR = r"\x1b\[[0-9;]*m"  # what changes the look of text, and nothing else
_state = {"quiet": False, "mute": False}
LOG_SHARE = 0.1  # in a log: a line at every tenth of the work,
LOG_SECONDS = 30.0  # and at least this often


def set_quiet(quiet: bool) -> None:
    """Quiet: neither `log_info` nor progress; results, warnings and errors stay."""
    _state["quiet"] = quiet


def is_quiet() -> bool:
    """Whether nothing is said of the work as it goes on, by this process."""
    return _state["quiet"] or _state["mute"]


def set_mute(mute: bool) -> None:
    """Mute: prints nothing, no results and warnings either; for all but one of several processes that say the same."""
    _state["mute"] = mute


def log_info(text: str) -> None:
    """Prints a line about the work on stderr, unless quiet."""
    if not _state["quiet"]:
        _write(sys.stderr, text)


def log_always(text: str) -> None:
    """Prints what was asked for on stderr, quiet or not."""
    _write(sys.stderr, text)


def warn(text: str) -> None:
    """Prints a warning on stderr, quiet or not."""
    log_always(f"warning: {text}")


def print_result(text: str) -> None:
    """Prints a result on stdout."""
    _write(sys.stdout, text)


def print_coloured(text: str) -> None:
    """Prints a result on stdout with the colours that it has: the caller sees to it that they are its own."""
    parts = re.split(f"({COLOUR})", text)
    _write(sys.stdout, "".join(part if at % 2 else make_visible(part) for at, part in enumerate(parts)), visible=True)


def make_visible(text: str) -> str:
    """A text with control characters and marks of direction as escapes: `\\x1b`, `\\u202e`; line ends and tabs stay."""
    return HIDDEN.sub(lambda found: _escape(ord(found[0])), text)


def _escape(code: int) -> str:
    code -= 0xDC00 if 0xDC80 <= code <= 0xDCFF else 0  # a byte of a name that is no UTF-8
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def open_progress(total: int | None, what: str, unit: str = "") -> tqdm | _LogProgress:
    """A context manager whose `.update(n)` moves a bar with the time left; in a log it prints a line at times.

    `unit`: what is counted, such as rows; then also how many a second.
    """
    if is_quiet() or not sys.stderr.isatty():
        return _LogProgress(total, what, unit)
    from tqdm import tqdm

    # A terminal that doesn't know its size would show no bar at all.
    size = {"dynamic_ncols": True} if _get_columns() else {"ncols": 80, "nrows": 25}
    return tqdm(total=total, desc=what, unit=f" {unit}" if unit else "it", file=sys.stderr, **size)


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Aligned columns, numbers to the right; lines without trailing blanks."""
    cells = [
        [make_visible(str(cell)).replace("\n", "\\n").replace("\t", " ") for cell in row] for row in [header, *rows]
    ]
    numeric = [bool(rows) and all(isinstance(row[at], (int, float)) for row in rows) for at in range(len(header))]
    widths = [max(len(row[at]) for row in cells) for at in range(len(header))]
    lines = []
    for row in cells:
        padded = [c.rjust(w) if right else c.ljust(w) for c, w, right in zip(row, widths, numeric, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def format_duration(seconds: float) -> str:
    """`42 s`, `3 m 05 s`, `2 h 14 m`."""
    total = round(seconds)
    if total < 60:
        return f"{total} s"
    minutes, rest = divmod(total, 60)
    return f"{minutes} m {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} m"


def _get_columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns
    except (OSError, ValueError):
        return 0


def _write(stream: TextIO, text: str, visible: bool = False) -> None:
    if _state["mute"]:
        return
    text = text if visible else make_visible(text)
    if stream is sys.stderr and stream.isatty() and "tqdm" in sys.modules:
        sys.modules["tqdm"].tqdm.write(text, file=stream)  # keeps a bar whole
        return
    write_stream(stream, text + "\n")


class _LogProgress:
    """The part of tqdm that we use, for a log: a line at every tenth of the work, and every 30 seconds."""

    def __init__(self, total: int | None, what: str, unit: str = ""):
        self.total, self.what, self.unit = total, what, unit
        self.done, self.logged = 0, 0
        self.started = self.logged_at = time.monotonic()

    def update(self, count: int = 1) -> None:
        """Counts `count` more items as done."""
        self.done += count
        now = time.monotonic()
        waited = now - self.logged_at
        share = (self.done - self.logged) / self.total if self.total else 0
        if self.done != self.total and (waited > LOG_SECONDS or (share >= LOG_SHARE and waited > 1)):
            self._log(now)

    def close(self) -> None:
        """Logs the last line; harmless when called again."""
        if self.done != self.logged:
            self._log(time.monotonic())

    def _log(self, now: float) -> None:
        self.logged, self.logged_at = self.done, now
        spent = now - self.started
        line = f"{self.what}: {self.done:,}"
        if self.total:
            line += f"/{self.total:,}"
        line += f" {self.unit}" if self.unit else ""
        if self.total:
            line += f" ({self.done / self.total:.0%})"
        line += f", {format_duration(spent)}"
        if self.unit and spent > 1:
            line += f", {round(self.done / spent):,} {self.unit}/s"
        if self.total and self.done < self.total:
            line += f", {format_duration(spent / self.done * (self.total - self.done))} left"
        log_info(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
