"""How a template takes tool calls: as messages of a role of their own, with arguments as objects or as JSON text."""

from contextlib import suppress

from impruver_core.chat_template.analysis.prober import (
    ANSWER,
    ARGUMENTS,
    FUNCTION_CALL,
    FUNCTION_RESPONSE,
    TOOL,
    USER,
    TemplateProber,
    call,
    probe_schema,
)
from impruver_core.chat_template.analysis.template_format import TemplateFormat
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.errors import RefusedError


def find_tool_call_format(probe: TemplateProber, shape: TemplateFormat) -> None:
    """Notes in `shape` which forms of a call the template renders, and whether it renders tools."""
    as_role = probe(USER, FUNCTION_CALL, FUNCTION_RESPONSE, ANSWER)
    shape.renders_function_roles = as_role is not None
    for as_text in (False, True):
        layout = probe(USER, call(as_text), TOOL, ANSWER)
        if layout is None:
            continue
        rendered = layout.text[layout.spans[1][0] : layout.spans[2][0]]
        broken = '\\"' in rendered if as_text else str(ARGUMENTS) in rendered
        if "probe_tool" in rendered and "probe value" in rendered and not broken:
            shape.renders_calls, shape.arguments_as_text = True, as_text
            break
    with suppress(RefusedError):
        with_tools = render_template(probe.template, [USER], [probe_schema()], variables=probe.variables)
        shape.renders_tools = "probe_tool" in with_tools
