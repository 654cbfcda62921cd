"""Modelfiles for Ollama: which file, where a turn ends, how long the context is, sampling, the system prompt.

Ollama's quotes know no escapes: a value in three quotes ends with the first line that ends in three quotes, and what is
no printable character is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError

FENCE = '"""'


KEPT = "\n\r\t"  # not printable, and kept all the same


def modelfile(
    gguf_name: str,
    stops: Sequence[str],
    num_ctx: int | None,
    parameters: Mapping[str, Any],
    system: str | None,
    template: str | None = None,
) -> str:
    """The text of a Modelfile that stands beside the GGUF file `gguf_name`; `template` is in Go's language."""
    settings = {"num_ctx": num_ctx, **parameters} if num_ctx else dict(parameters)
    further = settings.pop("stop", [])
    all_stops = dict.fromkeys([*stops, *(further if isinstance(further, list) else [further])])
    lines = [f"FROM ./{gguf_name}"]
    lines += [f"PARAMETER stop {quoted(str(text), 'stop')}" for text in all_stops]
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {_plain(each, name)}" for each in values]
    if template:
        lines.append(f"TEMPLATE {quoted(template, 'the chat template')}")
    if system:
        lines.append(f"SYSTEM {quoted(system, 'the system prompt')}")
    return "\n".join(lines) + "\n"


def quoted(text: str, what: str) -> str:
    """`text` as Ollama reads it back, unchanged; ImpruverError where no quotes can hold it."""
    if not re.search(r'[\r\n]|^"', text):
        return f'"{text}"'
    broken = broken_lines(text)
    if broken:
        raise ImpruverError(
            f'{what}: a line that ends in """ ends the text in a Modelfile; change that line: {broken[0]}'
        )
    return f"{FENCE}{text}{FENCE}"


def broken_lines(text: str) -> list[str]:
    """The lines that would end a text in a Modelfile."""
    return [line for line in re.split(r"[\r\n]", text)[:-1] if line.rstrip().endswith(FENCE)]


def warn_about_dropped(text: str | None) -> None:
    """Tells the characters of a system prompt that Ollama drops as it reads the Modelfile."""
    dropped = dict.fromkeys(char for char in text or "" if not char.isprintable() and char not in KEPT)
    if dropped:
        codes = ", ".join(f"U+{ord(char):04X}" for char in dropped)
        warn(f"the system prompt: Ollama drops characters that do not print, here {codes}")


def _plain(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else quoted(str(value), f"gguf.parameters.{name}")
