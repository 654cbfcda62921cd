"""Format Modelfiles for Ollama: which file, where a turn ends, how long the context is, sampling, the system prompt.

Ollama's quotes know no escapes: a value in three quotes ends with the first line that ends in three quotes, and what is
no printable character is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError

FENCE = '"""'
ALLOWED_CONTROLS = "\n\r\t"  # not printable, and not dropped


@dataclass(frozen=True)
class ModelDefaults:
    """What the Modelfiles of all files of a model say."""

    stops: Sequence[str]  # the texts that end a turn
    num_ctx: int | None  # the context in tokens; None leaves it to Ollama
    parameters: Mapping[str, Any]  # further PARAMETER lines; a list makes several, those of `stop` add to `stops`
    system: str | None = None
    template: str | None = None  # in Go's language, where Ollama would take another than the GGUF's


def format_modelfile(gguf_name: str, defaults: ModelDefaults) -> str:
    """Format the Modelfile that stands beside the GGUF file `gguf_name`."""
    settings = dict(defaults.parameters)
    if defaults.num_ctx:
        settings = {"num_ctx": defaults.num_ctx, **settings}
    further = settings.pop("stop", [])
    stops = dict.fromkeys([*defaults.stops, *(further if isinstance(further, list) else [further])])
    lines = [f"FROM ./{gguf_name}"]
    lines += [f"PARAMETER stop {quote(str(text), 'stop')}" for text in stops]
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {_format_value(each, name)}" for each in values]
    if defaults.template:
        lines.append(f"TEMPLATE {quote(defaults.template, 'the chat template')}")
    if defaults.system:
        lines.append(f"SYSTEM {quote(defaults.system, 'the system prompt')}")
    return "\n".join(lines) + "\n"


def quote(text: str, what: str) -> str:
    """Quote a text so that Ollama reads it back unchanged; ImpruverError where no quotes can hold it."""
    if not re.search(r'[\r\n]|^"', text):
        return f'"{text}"'
    unquotable = find_unquotable_lines(text)
    if unquotable:
        raise ImpruverError(
            f'{what}: a line that ends in """ ends the text in a Modelfile; change that line: {unquotable[0]}'
        )
    return f"{FENCE}{text}{FENCE}"


def find_unquotable_lines(text: str) -> list[str]:
    """Find the lines that would end a text in a Modelfile."""
    return [line for line in re.split(r"[\r\n]", text)[:-1] if line.rstrip().endswith(FENCE)]


def warn_about_dropped_characters(text: str | None) -> None:
    """Warn about characters of a system prompt that Ollama drops as it reads the Modelfile."""
    dropped = dict.fromkeys(char for char in text or "" if not char.isprintable() and char not in ALLOWED_CONTROLS)
    if dropped:
        codes = ", ".join(f"U+{ord(char):04X}" for char in dropped)
        warn(f"the system prompt: Ollama drops characters that do not print, here {codes}")


def _format_value(value: Any, name: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else quote(str(value), f"gguf.parameters.{name}")
