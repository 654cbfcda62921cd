"""`analyze_template`: what a chat template puts around the texts of a conversation, found by all probes once."""

import json
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache

from impruver_core.chat_template.analysis.generation_prompt import find_turn_boundaries
from impruver_core.chat_template.analysis.prober import (
    ANSWER,
    ARGUMENTS,
    FUNCTION_CALL,
    FUNCTION_RESPONSE,
    TOOL,
    USER,
    TemplateProber,
    build_tool_call,
    build_tool_schema,
)
from impruver_core.chat_template.analysis.template_format import SpecialTokens, TemplateFormat
from impruver_core.chat_template.analysis.turn_endings import find_turn_endings
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.errors import RefusedError


def analyze_template(
    template: str, variables: Mapping, specials: Iterable[str], with_tools: bool = False
) -> TemplateFormat:
    """The shape of `template` with these variables and special tokens; probed once for the same arguments."""
    key = json.dumps(dict(variables), sort_keys=True, ensure_ascii=False, default=str)
    return _analyze_template(template, key, tuple(specials), with_tools)


@lru_cache(maxsize=256)
def _analyze_template(template: str, variables: str, specials: tuple[str, ...], with_tools: bool) -> TemplateFormat:
    named = json.loads(variables)
    shape = TemplateFormat(SpecialTokens(specials), named.get("eos_token"))
    probe = TemplateProber(template, named, shape.specials, with_tools)
    _find_tool_call_format(probe, shape)
    find_turn_boundaries(probe, shape)
    find_turn_endings(probe, shape)
    return shape


def _find_tool_call_format(probe: TemplateProber, shape: TemplateFormat) -> None:
    """Notes in `shape` which forms of a call the template renders, and whether it renders tools."""
    as_role = probe(USER, FUNCTION_CALL, FUNCTION_RESPONSE, ANSWER)
    shape.renders_function_roles = as_role is not None
    for as_text in (False, True):
        layout = probe(USER, build_tool_call(as_text), TOOL, ANSWER)
        if layout is None:
            continue
        rendered = layout.text[layout.spans[1][0] : layout.spans[2][0]]
        broken = '\\"' in rendered if as_text else str(ARGUMENTS) in rendered
        if "probe_tool" in rendered and "probe value" in rendered and not broken:
            shape.renders_calls, shape.arguments_as_text = True, as_text
            break
    with suppress(RefusedError):
        with_tools = render_template(probe.template, [USER], [build_tool_schema()], variables=probe.variables)
        shape.renders_tools = "probe_tool" in with_tools
