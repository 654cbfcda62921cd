"""`analyze_template`: run all probes once, cached."""

import json
from collections.abc import Iterable, Mapping
from functools import lru_cache

from impruver_core.chat_template.analysis.special_tokens import Specials
from impruver_core.chat_template.analysis.template_format import Shape


def shape_of(template: str, variables: Mapping, specials: Iterable[str], with_tools: bool = False) -> Shape:
    """The shape of `template` with these variables and special tokens; probed once for the same arguments."""
    key = json.dumps(dict(variables), sort_keys=True, ensure_ascii=False, default=str)
    return _shape_of(template, key, tuple(specials), with_tools)


@lru_cache(maxsize=256)
def _shape_of(template: str, variables: str, specials: tuple[str, ...], with_tools: bool) -> Shape:
    from impruver_core.chat_template.analysis.generation_prompt import probe_junctions
    from impruver_core.chat_template.analysis.prober import Probe
    from impruver_core.chat_template.analysis.tool_calls import probe_calls
    from impruver_core.chat_template.analysis.turn_endings import probe_ends

    named = json.loads(variables)
    shape = Shape(Specials(specials), named.get("eos_token"))
    probe = Probe(template, named, shape.specials, with_tools)
    probe_calls(probe, shape)
    probe_junctions(probe, shape)
    probe_ends(probe, shape)
    return shape
