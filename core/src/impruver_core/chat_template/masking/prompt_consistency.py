"""Where training and inference meet: before the last learned answer of a conversation."""

from dataclasses import dataclass

from impruver_core.chat_template.masking.completeness import strips_reasoning
from impruver_core.chat_template.masking.loss_mask import render_chat
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.rendering.traced_string import get_runs
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import RefusedError


@dataclass(frozen=True, slots=True)
class PromptConsistency:
    """Of message `number`, the last learned answer: the text that training has before it, and what asks for it.

    `prompt`: None where the template refuses one there. `ended`: the template ends that turn. `strips_reasoning`: of
    earlier turns reasoning is not in the text.
    """

    number: int
    trained: str
    prompt: str | None
    ended: bool
    strips_reasoning: bool


def compare_prompt(
    templates: TemplateSelector, messages, tools=None, chat_template_kwargs=None
) -> PromptConsistency | None:
    """The joint of a conversation, None where nothing of it is learned; RefusedError as in `encode_chat`."""
    text, traced, spans = render_chat(templates, messages, tools, chat_template_kwargs)
    learned = [turn for turn in spans.turns if messages[turn[0]].get("train") is not False]
    if not learned:
        return None
    number, (start, _), ended = learned[-1]
    template, variables, shape = templates.select(tools, chat_template_kwargs)
    before = normalize_messages(messages[:number], shape) if number else []
    try:
        prompt = str.__str__(render_template(template, before, tools, add_generation_prompt=True, variables=variables))
    except RefusedError:
        prompt = None
    trained, last_turn = str.__str__(text)[:start], spans.turns[-1][0]
    return PromptConsistency(number, trained, prompt, ended, strips_reasoning(get_runs(text), traced, last_turn))
