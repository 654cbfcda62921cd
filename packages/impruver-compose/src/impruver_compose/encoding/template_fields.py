"""Counts what of conversations a chat template does not read: keys of messages, and arguments of the template."""

from collections.abc import Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from impruver_core.chat_template.masking.message_keys import renders_key
from impruver_core.chat_template.masking.message_normalization import MESSAGE_KEYS
from impruver_core.chat_template.rendering.renderer import find_variables
from impruver_core.chat_template.selection import TemplateSelector

from impruver_compose.converters.conversion import Conversation
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.field_usage import FieldUsage, is_filled

STRUCTURE = MESSAGE_KEYS - {"name"}  # keys of messages that are read, or whose loss is refused
TRIED = 3  # values of another key that are rendered, to see whether the template reads it


def count_template_fields(
    job: DatasetJob, templates: TemplateSelector, chats: Sequence[tuple[int, Conversation]], usage: FieldUsage
) -> None:
    """Counts the keys of messages that no mask knows, and the template's arguments that it does not read.

    `chats` are conversations, each with the number of its row, in order.

    Whether the template reads a key is tried on its first values.
    """
    counts = usage.keys
    tried: dict[str, set[str]] = {}
    variables: dict[str, frozenset[str]] = {}  # by template
    for row, group in groupby(chats, key=itemgetter(0)):
        found: dict[str, Any] = {}
        for chat in (conversation for _, conversation in group if conversation.messages):
            if chat.chat_template_kwargs:
                template = templates.select(chat.tools, job.build_template_kwargs(chat)).text
                known = variables.get(template) or variables.setdefault(template, find_variables(template))
                unread = [(name, value) for name, value in chat.chat_template_kwargs.items() if name not in known]
                usage.columns.count(row, ((f"chat_template_kwargs.{name}", value) for name, value in unread))
            messages = (message for message in chat.messages if isinstance(message, dict))
            others = (message.keys() - STRUCTURE for message in messages if not STRUCTURE.issuperset(message))
            for key in (key for keys in others for key in keys if key not in counts.read):
                values = [message[key] for message in chat.messages if is_filled(message.get(key))]
                found |= {key: values[0]} if values else {}
                shown, before = repr(values), tried.setdefault(key, set())
                if values and len(before) < TRIED and shown not in before:
                    before.add(shown)
                    selected = templates.select(chat.tools, job.build_template_kwargs(chat))
                    if renders_key(selected, chat.messages, key, chat.tools):
                        counts.read.add(key)
        counts.count(row, found.items())
