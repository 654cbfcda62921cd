"""Whether inference asks as training did: the rendered row up to an answer against the prompt for that answer."""

from collections.abc import Sequence
from dataclasses import dataclass

from impruver_core.chat_template.masking.loss_mask import render_chat
from impruver_core.chat_template.masking.loss_spans import strips_reasoning
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.rendering.traced_string import get_runs
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import RefusedError


@dataclass(frozen=True, slots=True)
class PromptConsistency:
    """Of message `number`, the last answer that is trained on: the text that training has before it, and its prompt.

    `prompt`: None where the template refuses one there. `ended`: the template ends that turn. `strips_reasoning`: of
    earlier turns reasoning is not in the text.
    """

    number: int
    trained: str
    prompt: str | None
    ended: bool
    strips_reasoning: bool


def compare_prompt(
    templates: TemplateSelector,
    messages: Sequence[dict],
    tools: list[dict] | None = None,
    chat_template_kwargs: dict | None = None,
) -> PromptConsistency | None:
    """Renders a conversation and the prompt for its last answer that is trained on; None where there is none.

    Raises RefusedError as `encode_chat` does.
    """
    chat = render_chat(templates, messages, tools, chat_template_kwargs)
    if not chat.trained:
        return None
    number, (start, _), ended = chat.trained[-1]
    selected = templates.select(tools, chat_template_kwargs)
    before = normalize_messages(messages[:number], selected.format) if number else []
    try:
        prompt = render_template(selected.text, before, tools, add_generation_prompt=True, variables=selected.variables)
        prompt = str.__str__(prompt)
    except RefusedError:
        prompt = None
    stripped = strips_reasoning(get_runs(chat.text), chat.messages, chat.spans.turns[-1].message)
    return PromptConsistency(number, str.__str__(chat.text)[:start], prompt, ended, stripped)
