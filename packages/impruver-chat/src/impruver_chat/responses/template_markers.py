"""How a chat template writes what is more than an answer's text: reasoning, and calls of functions."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from impruver_core.chat_template.analysis.prober import (
    ANSWER,
    FUNCTION_CALL,
    THOUGHT,
    USER,
    TemplateProber,
    build_tool_call,
)
from impruver_core.chat_template.analysis.template_format import TemplateFormat
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import ImpruverError

from impruver_chat.responses.tool_call_parser import ARGUMENTS, NAME, ToolCallFormat, infer_tool_call_format

USUAL = ("<think>", "</think>")  # where a template has no marks of its own for reasoning
TAG = re.compile(r"(<[^<>\s]+>|\[[^\[\]\s]+\])\s*$")


@dataclass(frozen=True)
class TemplateMarkers:
    """What stands around reasoning and calls; `calls` is None where no form of them is known.

    `before` is what the template writes before plain text. `inside`: the prompt itself has opened the reasoning.
    `as_field`: the template takes reasoning as `reasoning_content`; else it stays in the text, and the template makes
    of it what it does. `as_calls`, `as_role`: it takes calls as `tool_calls`, as messages of a role of their own; of
    the latter JSON alone is one. `tokens`: special tokens among the marks, which an answer's text has to keep.
    """

    reasoning_start: str = USUAL[0]
    reasoning_end: str = USUAL[1]
    answer_prefix: str = ""
    starts_in_reasoning: bool = False
    has_reasoning_field: bool = False
    tool_calls: ToolCallFormat | None = None
    supports_tool_calls: bool = False
    supports_function_roles: bool = False
    special_tokens: frozenset[str] = frozenset()


def find_tokenizer_markers(tokenizer, chat_template_kwargs: dict) -> TemplateMarkers:
    """The marks of a tokenizer's template with these arguments."""
    try:
        return find_markers(*TemplateSelector(tokenizer).select(None, chat_template_kwargs))
    except ImpruverError:  # no template: encoding tells that
        return TemplateMarkers()


def find_markers(template: str, variables: Mapping, shape: TemplateFormat) -> TemplateMarkers:
    """The marks of a template, by what it renders of a thought and of a call behind its generation prompt."""
    probe = TemplateProber(template, variables, shape.specials, False)
    asked = probe(USER, prompt=True)
    prompt = asked.text if asked else ""
    opens, closes, as_field = _find_reasoning_markers(probe, prompt)
    calls = None
    if shape.renders_calls:
        turns = (_render_turn(probe, prompt, _make_call_message(shape.arguments_as_text, times)) for times in (1, 2))
        calls = infer_tool_call_format(*(_strip_empty_reasoning(turn, closes) for turn in turns))
    elif shape.renders_function_roles:
        content = json.dumps({"name": NAME, "arguments": ARGUMENTS})
        calls = infer_tool_call_format(_render_turn(probe, prompt, {**FUNCTION_CALL, "content": content}))
    answer = _strip_empty_reasoning(_render_turn(probe, prompt, ANSWER), closes)
    before = answer[: max(answer.find(ANSWER["content"]), 0)].strip()
    literals = [opens, closes, before, *(calls.literals if calls else ())]
    kept = frozenset(token for token in shape.specials.tokens if any(token in literal for literal in literals))
    inside = prompt.rstrip().endswith(opens)
    takes = shape.renders_calls, shape.renders_function_roles
    return TemplateMarkers(opens, closes, before, inside, as_field, calls, *takes, kept)


def _find_reasoning_markers(probe: TemplateProber, prompt: str) -> tuple[str, str, bool]:
    """(what opens reasoning, what closes it, whether the template takes it as a field)."""
    turn, layout = _render_turn(probe, prompt, THOUGHT), probe(USER, THOUGHT)
    thought, answer = THOUGHT["reasoning_content"], THOUGHT["content"]
    if layout is None or thought not in layout.text or layout.text.find(thought) > layout.text.find(answer):
        return *USUAL, False
    start, end = layout.text.index(thought), layout.text.index(answer)
    closes = layout.text[start + len(thought) : end].strip()
    opens = turn[: turn.find(thought)].strip()
    if not opens:  # the prompt has it, or has more than it
        tag = TAG.search(layout.text[:start])
        opens = tag.group(1) if tag else ""
    return (opens, closes, True) if opens and closes else (*USUAL, False)


def _make_call_message(as_text: bool, times: int) -> dict:
    """The message of the probe's call, made so many times."""
    message = build_tool_call(as_text, times)
    arguments = json.dumps(ARGUMENTS) if as_text else ARGUMENTS
    calls = [{**each, "function": {"name": NAME, "arguments": arguments}} for each in message["tool_calls"]]
    return message | {"tool_calls": calls}


def _render_turn(probe: TemplateProber, prompt: str, message: dict) -> str:
    """What of a turn the model has to say itself: the text behind the prompt; "" where its header is another one."""
    layout = probe(USER, message)
    if layout is None or not prompt:
        return ""
    shared = probe.specials.compute_shared_length(layout.text, prompt)
    return "" if prompt[shared:].strip() else layout.text[shared:]


def _strip_empty_reasoning(turn: str, closes: str) -> str:
    """A turn less empty reasoning before what it says."""
    head, mark, rest = turn.partition(closes)
    return rest if mark and NAME not in head and ANSWER["content"] not in head else turn
