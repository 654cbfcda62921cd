"""Markdown as lines for a terminal, with rich: each block by itself, so that finished ones need no second look."""

import re
from functools import cache
from itertools import pairwise
from typing import Any

CONTROLS = {code: "\N{REPLACEMENT CHARACTER}" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}
CONTROLS[ord("\r")] = ""
LISTS = ("ordered_list_open", "bullet_list_open")
MARKER = re.compile(r" {0,3}(\d{1,9}[.)]?|[-+*])\s*")  # or the beginning of one
CODE_THEME = "ansi_dark"  # the terminal's own colours, on its own background


def replace_controls(text: str) -> str:
    """A text without what a terminal would obey."""
    return text.translate(CONTROLS)


@cache
def make_parser() -> Any:
    """Markdown without HTML: what a model writes as tags is text, and is to be seen."""
    from markdown_it import MarkdownIt

    return MarkdownIt("commonmark", {"html": False}).enable(["strikethrough", "table"])


def split_blocks(text: str) -> list[str]:
    """A text's blocks; nothing that comes can change any but the last."""
    tokens = [token for token in make_parser().parse(text) if token.level == 0 and token.map and token.nesting >= 0]
    lines, borders = text.splitlines(keepends=True), [token.map[0] for token in tokens[1:]]
    if borders and tokens[-2].type in LISTS and MARKER.fullmatch("".join(lines[borders[-1] :])):
        borders.pop()  # it may yet become the list's next item
    return ["".join(lines[start:end]) for start, end in pairwise([0, *borders, None])]


def render_markdown(text: str) -> Any:
    """A renderable of rich's; line breaks stay where the model put them."""
    from rich.markdown import Markdown

    shown = Markdown("", code_theme=CODE_THEME, hyperlinks=False)
    shown.parsed = make_parser().parse(text)
    for token in shown.parsed:
        for child in token.children or ():
            child.type = "hardbreak" if child.type == "softbreak" else child.type
    return shown


def split_paragraphs(text: str) -> list[str]:
    """The paragraphs of a plain text."""
    return re.split(r"\n\n+", text)


def render_dimmed(text: str) -> Any:
    """Plain text, dimmed: a renderable of rich's."""
    from rich.text import Text

    return Text(text.strip("\n"), style="dim")
