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
    """What probes find out of `template` with these variables and special tokens; cached by its arguments."""
    key = json.dumps(dict(variables), sort_keys=True, ensure_ascii=False, default=str)
    return _analyze_template(template, key, tuple(specials), with_tools)


@lru_cache(maxsize=256)
def _analyze_template(template: str, variables: str, specials: tuple[str, ...], with_tools: bool) -> TemplateFormat:
    values = json.loads(variables)
    fmt = TemplateFormat(SpecialTokens(specials), values.get("eos_token"))
    probe = TemplateProber(template, values, fmt.specials, with_tools)
    _find_tool_call_format(probe, fmt)
    find_turn_boundaries(probe, fmt)
    find_turn_endings(probe, fmt)
    return fmt


def _find_tool_call_format(probe: TemplateProber, fmt: TemplateFormat) -> None:
    """Sets which forms of a tool call the template renders: a role of its own, arguments as objects or as JSON text."""
    fmt.renders_function_roles = probe(USER, FUNCTION_CALL, FUNCTION_RESPONSE, ANSWER) is not None
    for as_text in (False, True):
        rendering = probe(USER, build_tool_call(as_text), TOOL, ANSWER)
        if rendering is None:
            continue
        written = rendering.text[rendering.spans[1][0] : rendering.spans[2][0]]
        broken = '\\"' in written if as_text else str(ARGUMENTS) in written
        if "probe_tool" in written and "probe value" in written and not broken:
            fmt.renders_calls, fmt.arguments_as_text = True, as_text
            break
    with suppress(RefusedError):
        with_tools = render_template(probe.template, [USER], [build_tool_schema()], variables=probe.variables)
        fmt.renders_tools = "probe_tool" in with_tools
