"""Which keys of messages a chat template renders."""

from __future__ import annotations

from collections.abc import Sequence

from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.selection import SelectedTemplate
from impruver_core.errors import RefusedError


def renders_key(
    selected: SelectedTemplate, messages: Sequence[dict], key: str, tools: Sequence[dict] | None = None
) -> bool:
    """Whether a rendering of these messages, or whether there is one, depends on what they have under `key`."""
    less = [{name: value for name, value in message.items() if name != key} for message in messages]
    return _render(selected, messages, tools) != _render(selected, less, tools)


def _render(selected: SelectedTemplate, messages: Sequence[dict], tools: Sequence[dict] | None) -> str | None:
    try:
        normalized = normalize_messages(messages, selected.format)
        return str.__str__(render_template(selected.text, normalized, tools, variables=selected.variables))
    except RefusedError:
        return None
