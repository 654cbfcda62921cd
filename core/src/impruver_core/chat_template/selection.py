"""Which chat template of a tokenizer is in force, with what variables, and what probes found out about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from impruver_core.chat_template.analysis.analyzer import analyze_template
from impruver_core.chat_template.analysis.template_format import TemplateFormat
from impruver_core.errors import ImpruverError
from impruver_core.tokenizer import get_special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# The first impruver's form for a tokenizer without a template, in our words.
DEFAULT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ bos_token + message['role'] + '\\n' + message['content'] | trim + eos_token }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ bos_token + 'assistant\\n' }}{%- endif -%}"
)


class SelectedTemplate(NamedTuple):
    """The template for a conversation: its text, the variables that it is rendered with, what probes found out."""

    text: str
    variables: dict
    format: TemplateFormat


class TemplateSelector:
    """Selects among the chat templates of a tokenizer as they are now, and analyses each once."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._special_tokens = get_special_tokens(tokenizer)
        self._selected: dict[tuple[bool, str], SelectedTemplate] = {}

    def select(self, tools: Sequence[dict] | None = None, chat_template_kwargs: dict | None = None) -> SelectedTemplate:
        """The template for a conversation with these tools and arguments of the template."""
        kwargs = chat_template_kwargs or {}
        key = (bool(tools), repr(kwargs))
        if key not in self._selected:
            template, variables = get_template(self._tokenizer, tools), {**self._special_tokens, **kwargs}
            analysis = analyze_template(template, variables, _list_texts(self._special_tokens), bool(tools))
            self._selected[key] = SelectedTemplate(template, variables, analysis)
        return self._selected[key]


def get_template(tokenizer: PreTrainedTokenizerBase, tools: Sequence[dict] | None = None) -> str:
    """The template text in force: `tool_use` of several where there are tools, else `default`; ours without any."""
    template = tokenizer.chat_template
    if isinstance(template, dict):
        name = "tool_use" if tools and "tool_use" in template else "default"
        if name not in template:
            raise ImpruverError(f"the tokenizer has chat templates {', '.join(sorted(template))}, but no default")
        return template[name]
    if template is not None:
        return template
    missing = [name for name in ("bos_token", "eos_token") if getattr(tokenizer, name, None) is None]
    if missing:
        raise ImpruverError(
            f"the tokenizer has neither a chat template nor {' and '.join(missing)}: "
            "set tokenizer.chat_template or tokenizer.special_tokens in the recipe"
        )
    return DEFAULT_TEMPLATE


def end_of_turn(template: str, special_tokens: dict) -> list[str]:
    """The texts that end an assistant's turn in `template`, most usual first: a special token each where it has one.

    `special_tokens`: names to texts as the template reads them (`bos_token`, …); lists of further ones are allowed.
    """
    return analyze_template(template, special_tokens, _list_texts(special_tokens)).stops


def get_end_of_turn(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """`end_of_turn` of the template in force; [] where there is none, as text alone needs none."""
    try:
        return end_of_turn(get_template(tokenizer), get_special_tokens(tokenizer))
    except ImpruverError:
        return []


def _list_texts(names: dict) -> list[str]:
    values = (value if isinstance(value, (list, tuple)) else [value] for value in names.values())
    return [text for value in values for text in value if isinstance(text, str) and text]
