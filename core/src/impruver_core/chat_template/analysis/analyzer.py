"""`analyze_template`: run all probes once, cached."""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache

from impruver_core.chat_template.analysis.special_tokens import SpecialTokens
from impruver_core.chat_template.analysis.template_format import TemplateFormat


def analyze_template(
    template: str, variables: Mapping, specials: Iterable[str], with_tools: bool = False
) -> TemplateFormat:
    """The shape of `template` with these variables and special tokens; probed once for the same arguments."""
    key = json.dumps(dict(variables), sort_keys=True, ensure_ascii=False, default=str)
    return _analyze_template(template, key, tuple(specials), with_tools)


@lru_cache(maxsize=256)
def _analyze_template(template: str, variables: str, specials: tuple[str, ...], with_tools: bool) -> TemplateFormat:
    from impruver_core.chat_template.analysis.generation_prompt import find_turn_boundaries
    from impruver_core.chat_template.analysis.prober import TemplateProber
    from impruver_core.chat_template.analysis.tool_calls import find_tool_call_format
    from impruver_core.chat_template.analysis.turn_endings import find_turn_endings

    named = json.loads(variables)
    shape = TemplateFormat(SpecialTokens(specials), named.get("eos_token"))
    probe = TemplateProber(template, named, shape.specials, with_tools)
    find_tool_call_format(probe, shape)
    find_turn_boundaries(probe, shape)
    find_turn_endings(probe, shape)
    return shape
