"""What a chat template writes around reasoning and tool calls, found by rendering probe conversations."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from impruver_core.chat_template.analysis import prober as probes
from impruver_core.chat_template.analysis.prober import ANSWER, FUNCTION_CALL, THOUGHT, USER, TemplateProber
from impruver_core.chat_template.analysis.template_format import TemplateFormat
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import ImpruverError

from impruver_chat.responses.tool_call_parser import ARGUMENTS, NAME, ToolCallFormat, infer_tool_call_format

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

TAG = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])\s*$")


class ReasoningMarkers(NamedTuple):
    """The texts around reasoning; `has_field`: the template takes it as `reasoning_content`, else as text."""

    start: str = "<think>"
    end: str = "</think>"
    has_field: bool = False


USUAL = ReasoningMarkers()  # where a template has none of its own


@dataclass(frozen=True)
class TemplateMarkers:
    """What a template writes around reasoning, answers and tool calls.

    Attributes:
        answer_prefix: stands before plain text.
        starts_in_reasoning: the generation prompt has opened the reasoning.
        tool_calls: None where no form of them is known.
        supports_tool_calls: the template takes calls as `tool_calls`.
        supports_function_roles: it takes them as messages of a role of their own; of these JSON alone is one, too.
        special_tokens: those among the markers, which the text of an answer has to keep.
    """

    reasoning: ReasoningMarkers = USUAL
    answer_prefix: str = ""
    starts_in_reasoning: bool = False
    tool_calls: ToolCallFormat | None = None
    supports_tool_calls: bool = False
    supports_function_roles: bool = False
    special_tokens: frozenset[str] = frozenset()


def find_tokenizer_markers(tokenizer: PreTrainedTokenizerBase, chat_template_kwargs: Mapping) -> TemplateMarkers:
    """Find the markers of a tokenizer's chat template with these variables."""
    try:
        return find_markers(*TemplateSelector(tokenizer).select(None, dict(chat_template_kwargs)))
    except ImpruverError:  # no template: encoding will say so
        return TemplateMarkers()


def find_markers(template: str, variables: Mapping, template_format: TemplateFormat) -> TemplateMarkers:
    """Find the markers of a template by what it renders of reasoning and of a call behind its generation prompt."""
    prober = TemplateProber(template, variables, template_format.specials, False)
    rendering = prober(USER, prompt=True)
    prompt = rendering.text if rendering else ""
    reasoning, form = _find_reasoning_markers(prober, prompt), None
    if template_format.renders_calls:
        messages = (_make_call_message(template_format.arguments_as_text, times) for times in (1, 2))
        turns = (_render_turn(prober, prompt, message) for message in messages)
        form = infer_tool_call_format(*(_strip_empty_reasoning(turn, reasoning.end) for turn in turns))
    elif template_format.renders_function_roles:
        content = json.dumps({"name": NAME, "arguments": ARGUMENTS})
        form = infer_tool_call_format(_render_turn(prober, prompt, {**FUNCTION_CALL, "content": content}))
    answer = _strip_empty_reasoning(_render_turn(prober, prompt, ANSWER), reasoning.end)
    prefix = answer[: max(answer.find(ANSWER["content"]), 0)].strip()
    literals = [reasoning.start, reasoning.end, prefix, *(form.literals if form else ())]
    tokens = (token for token in template_format.specials.tokens if any(token in literal for literal in literals))
    starts_in_reasoning = prompt.rstrip().endswith(reasoning.start)
    supports = template_format.renders_calls, template_format.renders_function_roles
    return TemplateMarkers(reasoning, prefix, starts_in_reasoning, form, *supports, frozenset(tokens))


def _find_reasoning_markers(prober: TemplateProber, prompt: str) -> ReasoningMarkers:
    turn, rendering = _render_turn(prober, prompt, THOUGHT), prober(USER, THOUGHT)
    thought, answer = THOUGHT["reasoning_content"], THOUGHT["content"]
    if rendering is None or thought not in rendering.text or rendering.text.find(thought) > rendering.text.find(answer):
        return USUAL
    start, answer_start = rendering.text.index(thought), rendering.text.index(answer)
    closes = rendering.text[start + len(thought) : answer_start].strip()
    opens = turn[: turn.find(thought)].strip()
    if not opens:  # the prompt has it, or has more than it
        tag = TAG.search(rendering.text[:start])
        opens = tag.group(1) if tag else ""
    return ReasoningMarkers(opens, closes, True) if opens and closes else USUAL


def _make_call_message(as_text: bool, times: int) -> dict:
    """Make the message of the probe's call, repeated so many times."""
    message = probes.build_tool_call(as_text, times)
    arguments = json.dumps(ARGUMENTS) if as_text else ARGUMENTS
    calls = [{**each, "function": {"name": NAME, "arguments": arguments}} for each in message["tool_calls"]]
    return message | {"tool_calls": calls}


def _render_turn(prober: TemplateProber, prompt: str, message: dict) -> str:
    """Render what of a turn the model has to generate: the text behind the prompt; "" if its header is another one."""
    rendering = prober(USER, message)
    if rendering is None or not prompt:
        return ""
    shared = prober.specials.compute_shared_length(rendering.text, prompt)
    return "" if prompt[shared:].strip() else rendering.text[shared:]


def _strip_empty_reasoning(turn: str, reasoning_end: str) -> str:
    """Strip empty reasoning from the beginning of a turn."""
    head, marker, rest = turn.partition(reasoning_end)
    return rest if marker and NAME not in head and ANSWER["content"] not in head else turn
