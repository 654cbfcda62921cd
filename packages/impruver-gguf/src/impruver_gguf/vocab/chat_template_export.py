"""The chat template as it goes into a GGUF: without `{% generation %}`, which only training asks for."""

from __future__ import annotations

import re
from typing import Any

from impruver_core.chat_template.rendering.renderer import compile_template
from impruver_core.errors import ImpruverError

TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}(\n?)")


def exported(templates: Any) -> Any:
    """A chat template, or a list of named ones, as GGUF is to hold it; None for none."""
    if isinstance(templates, list):
        return [entry | {"template": without_generation(entry["template"])} for entry in templates]
    return without_generation(templates) if isinstance(templates, str) else templates


def without_generation(template: str) -> str:
    """`template` without its generation tags: what it renders stays the same, blanks included.

    Where a tag also trims what stands around it (a dash, a line of its own), an empty block that trims alike stands in.
    """

    tags = _starts(template) if TAG.search(template) else set()

    def replaced(found: re.Match) -> str:
        if found.start() not in tags:
            return found[0]
        left, right, newline = found.groups()
        line = template[: found.start()].rpartition("\n")[2]
        trims = left or right or newline or not line.strip()
        return f"{{%{left} if true %}}{{% endif {right}%}}{newline}" if trims else ""

    return TAG.sub(replaced, template)


def _starts(template: str) -> set[int]:
    """Where tags start, not those within a text, a comment or a raw block; none where the template does not parse."""
    same = template.replace("\r\n", " \n").replace("\r", "\n")  # as the lexer reads lines, at the same places
    try:
        tokens = list(compile_template(template).environment.lex(same))
    except ImpruverError:
        return set()
    at, starts = 0, set()
    for _, kind, text in tokens:
        at = same.index(text, at)  # the lexer leaves out blanks that are trimmed
        if kind == "block_begin":
            starts.add(at)
        at += len(text)
    return starts
