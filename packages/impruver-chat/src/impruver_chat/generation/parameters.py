"""Generation parameters: flag, then recipe, then what was saved with the model, then the first impruver's values."""

from argparse import ArgumentTypeError
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_type_hints

from impruver_core.cli.flags import parse_boolean
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import describe_type
from impruver_core.suggestions import suggest

from impruver_chat.generation.prompt import SamplingParams
from impruver_chat.generation.saved_parameters import read_saved_parameters
from impruver_chat.sections import ChatSection, find_out_of_range

TYPES = get_type_hints(SamplingParams)
NAMES = tuple(TYPES)
GREEDY = replace(SamplingParams(), repetition_penalty=1.0, do_sample=False)  # for a file of questions


def resolve_parameters(
    section: ChatSection, model_dir: Path | None, interactive: bool, gguf: Path | None = None
) -> SamplingParams:
    """Resolve each parameter: the section's, else that saved with the model, else the default.

    A temperature, top_p or top_k that the user gives asks for sampling; a temperature of 0 is greedy.
    """
    values = {name: getattr(section, name) for name in NAMES if getattr(section, name) is not None}
    defaults = SamplingParams() if interactive else GREEDY
    return _apply(replace(defaults, **read_saved_parameters(model_dir, gguf)), values)


def with_parameter(sampling: SamplingParams, name: str, text: str) -> SamplingParams:
    """The parameters with one set to the value in `text`; ImpruverError for another name or value."""
    if name not in NAMES:
        raise ImpruverError(f"no parameter {name}{suggest_name(name, NAMES)}; there are {', '.join(NAMES)}")
    return _apply(sampling, {name: parse_parameter(name, text)})


def _apply(sampling: SamplingParams, values: dict[str, Any]) -> SamplingParams:
    if "do_sample" not in values and any(name in values for name in ("temperature", "top_p", "top_k")):
        values = values | {"do_sample": True}
    new = replace(sampling, **values)
    return replace(new, do_sample=new.do_sample and new.temperature > 0)


def parse_parameter(name: str, text: str) -> Any:
    """Parse the value of a parameter, or of `history_limit`; ImpruverError where `text` is none."""
    kind = TYPES.get(name, int)
    try:
        value = parse_boolean(text) if kind is bool else kind(text)
    except (ValueError, ArgumentTypeError):
        raise ImpruverError(f"{name}: {text[:40]!r} is not {describe_type(kind)}") from None
    for fault in find_out_of_range({name: value}).values():
        raise ImpruverError(f"{name} {fault}")
    return value


def suggest_name(word: str, names: Iterable[str]) -> str:
    """`, did you mean NAME?` with the one of `names` that is nearest to `word`; "" where none is near."""
    return suggest(word, names, cutoff=0.5, form=", did you mean {}?", list_valid=False)


def format_parameters(sampling: SamplingParams) -> str:
    """Format the parameters as one line for a person."""
    how = "the likeliest token each time"
    if sampling.do_sample:
        how = f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}"
    penalty = f", repetition_penalty {sampling.repetition_penalty:g}" if sampling.repetition_penalty != 1 else ""
    return f"{how}{penalty}, at most {sampling.max_new_tokens} new tokens"
