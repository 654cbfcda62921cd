"""The chat template as it goes into a GGUF: without `{% generation %}`, which only training asks for."""

from __future__ import annotations

import re
from typing import Any

from impruver_core.chat_template.rendering.renderer import compile_template
from impruver_core.errors import ImpruverError

TAG = re.compile(r"\{%([-+]?)\s*(?:end)?generation\s*([-+]?)%\}(\n?)")


def export_chat_template(templates: Any) -> Any:
    """Strip a chat template, or each of a list of named ones as tokenizer_config.json has them; None stays None."""
    if isinstance(templates, list):
        return [entry | {"template": strip_generation_tags(entry["template"])} for entry in templates]
    return strip_generation_tags(templates) if isinstance(templates, str) else templates


def strip_generation_tags(template: str) -> str:
    """Take the generation tags out of a template; what it renders stays the same, blanks included.

    Where a tag also trims the blanks around it (a dash, a line of its own), an empty block that trims alike stands in.
    """
    tags = _find_tag_starts(template) if TAG.search(template) else set()

    def replace(match: re.Match) -> str:
        if match.start() not in tags:
            return match[0]
        left, right, newline = match.groups()
        line = template[: match.start()].rpartition("\n")[2]
        trims = left or right or newline or not line.strip()
        return f"{{%{left} if true %}}{{% endif {right}%}}{newline}" if trims else ""

    return TAG.sub(replace, template)


def _find_tag_starts(template: str) -> set[int]:
    """Where tags start, less what is in a text, a comment or a raw block; none where the template does not parse."""
    text = template.replace("\r\n", " \n").replace("\r", "\n")  # as the lexer reads lines, with the same positions
    try:
        tokens = list(compile_template(template).environment.lex(text))
    except ImpruverError:
        return set()
    position, starts = 0, set()
    for _, kind, value in tokens:
        position = text.index(value, position)  # the lexer leaves out blanks that are trimmed
        if kind == "block_begin":
            starts.add(position)
        position += len(value)
    return starts
