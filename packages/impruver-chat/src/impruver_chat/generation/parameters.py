"""Generation parameters: flag, then recipe, then generation_config.json, then the first impruver's values."""

from argparse import ArgumentTypeError
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

from impruver_core.cli.flags import parse_boolean
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import FLAG, NUMBER, WHOLE, describe_type, read_json
from impruver_core.suggestions import suggest

from impruver_chat.sections import ChatSection, find_out_of_range

SAMPLING_NAMES = ("temperature", "top_p", "top_k")


@dataclass(frozen=True)
class SamplingParams:
    """How an answer's tokens are chosen. The values are the first impruver's, for a terminal."""

    max_new_tokens: int = 200
    repetition_penalty: float = 1.2
    do_sample: bool = True
    temperature: float = 0.5
    top_p: float = 0.6
    top_k: int = 40


NAMES = tuple(get_type_hints(SamplingParams))
KINDS = {name: {int: WHOLE, float: NUMBER, bool: FLAG}[kind] for name, kind in get_type_hints(SamplingParams).items()}
TYPES = get_type_hints(SamplingParams) | {"history_limit": int}
GREEDY = replace(SamplingParams(), repetition_penalty=1.0, do_sample=False)  # for a file of questions


def resolve_parameters(section: ChatSection, model_dir: Path, interactive: bool) -> SamplingParams:
    """The parameters of `section`, else of `model_dir`'s generation_config.json, else the defaults.

    A temperature, top_p or top_k that the user gives asks for sampling; a temperature of 0 is greedy.
    """
    given = {name: getattr(section, name) for name in NAMES if getattr(section, name) is not None}
    last = SamplingParams() if interactive else GREEDY
    return _apply(replace(last, **_read_generation_config(model_dir / "generation_config.json")), given)


def with_parameter(sampling: SamplingParams, name: str, text: str) -> SamplingParams:
    """With a parameter set to what `text` says; ImpruverError for another name or value."""
    if name not in NAMES:
        raise ImpruverError(f"no parameter {name}{suggest_name(name, NAMES)}; there are {', '.join(NAMES)}")
    return _apply(sampling, {name: parse_parameter(name, text)})


def _apply(sampling: SamplingParams, given: dict[str, Any]) -> SamplingParams:
    if "do_sample" not in given and any(name in given for name in SAMPLING_NAMES):
        given = given | {"do_sample": True}
    new = replace(sampling, **given)
    return replace(new, do_sample=new.do_sample and new.temperature > 0)


def parse_parameter(name: str, text: str) -> Any:
    """What a text says that `name` is to be; ImpruverError where it can't be."""
    wanted = TYPES[name]
    try:
        value = parse_boolean(text) if wanted is bool else wanted(text)
    except (ValueError, ArgumentTypeError):
        raise ImpruverError(f"{name}: {text[:40]!r} is not {describe_type(wanted)}") from None
    for fault in find_out_of_range({name: value}).values():
        raise ImpruverError(f"{name} {fault}")
    return value


def suggest_name(word: str, names: Iterable[str]) -> str:
    """`, did you mean NAME?` with the one of `names` that is nearest to `word`; "" where none is near."""
    return suggest(word, names, cutoff=0.5, form=", did you mean {}?", list_valid=False)


def format_parameters(sampling: SamplingParams) -> str:
    """The parameters in one line, for a person."""
    how = "the likeliest token each time"
    if sampling.do_sample:
        how = f"temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}"
    penalty = f", repetition_penalty {sampling.repetition_penalty:g}" if sampling.repetition_penalty != 1 else ""
    return f"{how}{penalty}, at most {sampling.max_new_tokens} new tokens"


def _read_generation_config(path: Path) -> dict[str, Any]:
    values = read_json(path, KINDS, missing_ok=True)
    # transformers takes no whole number for a float
    given = {name: TYPES[name](values[name]) for name in NAMES if values.get(name) is not None}
    for name, fault in find_out_of_range(given).items():
        raise ImpruverError(f"{path}: {name} {fault}")
    return given
