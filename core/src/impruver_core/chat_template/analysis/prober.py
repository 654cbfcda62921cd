"""Renders probe conversations with a template, and locates their texts in the rendering."""

import json
from collections.abc import Mapping
from dataclasses import dataclass

from impruver_core.chat_template.analysis.template_format import SpecialTokens
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.rendering.traced_string import find_message_spans, get_runs, trace_messages
from impruver_core.errors import RefusedError

USER = {"role": "user", "content": "probe question one"}
ANSWER = {"role": "assistant", "content": "probe answer two"}
SYSTEM = {"role": "system", "content": "probe system three"}
AGAIN = {"role": "user", "content": "probe question four"}
LAST = {"role": "assistant", "content": "probe answer nine"}
THOUGHT = {"role": "assistant", "content": "probe answer five", "reasoning_content": "probe thought six"}
TOOL = {"role": "tool", "name": "probe_tool", "tool_call_id": "call00001", "content": "probe result seven"}
FUNCTION_CALL = {"role": "function_call", "content": '{"name": "probe_tool", "arguments": {"key": "probe value"}}'}
FUNCTION_RESPONSE = {"role": "function_response", "content": "probe result eight"}
ARGUMENTS = {"key": "probe value"}


def build_tool_call(as_text: bool, times: int = 1, named_ids: bool = False, name: str = TOOL["name"]) -> dict:
    """An assistant's message that calls a tool once or several times.

    `as_text`: the arguments are JSON text instead of an object. `named_ids`: the ids hold the tool's name, as Kimi's.
    """
    function = {"name": name, "arguments": json.dumps(ARGUMENTS) if as_text else ARGUMENTS}
    ids = [build_call_id(name, number, named_ids) for number in range(times)]
    calls = [{"id": call_id, "type": "function", "function": function} for call_id in ids]
    return {"role": "assistant", "content": "", "tool_calls": calls}


def build_call_id(name: str, number: int, named_ids: bool) -> str:
    """The id of a conversation's call `number`, from 0: of nine characters (Mistral wants that), or with its name."""
    return f"functions.{name}:{number}" if named_ids else f"call{number + 1:05d}"


def build_tool_result(named_ids: bool) -> dict:
    """The result of the first call of `build_tool_call`."""
    return {**TOOL, "tool_call_id": build_call_id(TOOL["name"], 0, named_ids)}


def build_tool_schema() -> dict:
    """The schema of the tool that the probes call."""
    properties = {"key": {"type": "string", "description": "probe"}}
    parameters = {"type": "object", "properties": properties, "required": ["key"]}
    function = {"name": "probe_tool", "description": "probe tool", "parameters": parameters}
    return {"type": "function", "function": function}


@dataclass(frozen=True)
class ProbeRendering:
    """A rendered text; `spans[i]` is where the texts of message i stand in it.

    `opened`: a system message stands before them, as the template refuses or drops them without one.
    """

    text: str
    spans: list[tuple[int, int]]
    opened: bool = False


class TemplateProber:
    """Renders probe conversations of one template; None for those that it refuses or renders in part."""

    def __init__(self, template: str, variables: Mapping, specials: SpecialTokens, with_tools: bool):
        self.template, self.variables, self.specials = template, variables, specials
        self.tools = [build_tool_schema()] if with_tools else None

    def __call__(self, *messages: dict, prompt: bool = False) -> ProbeRendering | None:
        for opening in ((), (SYSTEM,)):  # some templates want a system message
            traced = trace_messages([*opening, *messages])
            options = {"add_generation_prompt": prompt, "variables": self.variables}
            try:
                text = render_template(self.template, traced, self.tools, **options)
            except RefusedError:
                continue
            spans = find_message_spans(get_runs(text), len(text))
            numbers = range(len(opening), len(traced))
            if all(number in spans for number in numbers):
                found = [(spans[n].start, spans[n].end) for n in numbers]
                return ProbeRendering(str.__str__(text), found, bool(opening))
        return None
