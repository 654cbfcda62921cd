"""Texts for a terminal: marked by colour where it has any, by brackets elsewhere; what can't be seen made visible."""

import os
import re
import sys
from collections.abc import Callable

GREEN, RED, GREY = "32", "31", "90"


BLANKS = re.compile(r"  +|^ | $", re.MULTILINE)  # those that would be overlooked


def in_colour() -> bool:
    """Whether stdout is a terminal that may show colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def mark(code: str, left: str = "", right: str = "") -> Callable[[str], str]:
    """What colours a text, each of its lines by itself (a pager shows no colour across lines), or brackets it."""
    if not in_colour():
        return lambda text: f"{left}{text}{right}"
    return lambda text: "\n".join(f"\x1b[{code}m{line}\x1b[0m" if line else line for line in text.split("\n"))


def readable(text: str, reserved: str = "") -> str:
    """`text` with its line ends and easily overlooked blanks visible; unprintable and `reserved` characters escaped."""
    text = BLANKS.sub(lambda found: "·" * len(found[0]), text)
    return "".join(_shown(character, reserved) for character in text)


def _shown(character: str, reserved: str) -> str:
    if character == "\n":
        return "⏎\n"
    if character == "\t":
        return "→\t"
    if character in reserved:
        return ascii(character)[1:-1]
    return character if character.isprintable() else repr(character)[1:-1]
