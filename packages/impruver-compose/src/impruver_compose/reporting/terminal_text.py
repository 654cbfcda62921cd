"""Texts for a terminal: marked by colour where it has any, by brackets elsewhere; what can't be seen made visible."""

import os
import re
import sys
from collections.abc import Callable

GREEN, RED, GREY = "32", "31", "90"


BLANKS = re.compile(r"  +|^ | $", re.MULTILINE)  # those that would be overlooked


def supports_colour() -> bool:
    """Whether stdout is a terminal that may show colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def make_marker(code: str, left: str = "", right: str = "") -> Callable[[str], str]:
    """What colours a text, each of its lines by itself (a pager shows no colour across lines), or brackets it."""
    if not supports_colour():
        return lambda text: f"{left}{text}{right}"
    return lambda text: "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else line for line in text.split("\n"))


def format_visible(text: str, reserved: str = "") -> str:
    """`text` with its line ends and easily overlooked blanks visible; unprintable and `reserved` characters escaped."""
    text = BLANKS.sub(lambda found: "·" * len(found[0]), text)
    return "".join(_format_character(character, reserved) for character in text)


def _format_character(character: str, reserved: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "→\t"
    if character in reserved:
        return ascii(character)[1:-1]
    return character if character.isprintable() else repr(character)[1:-1]
