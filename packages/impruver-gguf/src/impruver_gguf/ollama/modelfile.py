"""Modelfiles for Ollama: what is known of the trained chat (ends of turn, context, sampling, system prompt), formatted.

Ollama's quotes know no escapes: a value in three quotes ends with the first line that ends in three quotes, and what is
no printable character is dropped.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core import end_of_turn
from impruver_core.cli.console import warn
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, NUMBER, TEXT, WHOLE, check_keys, read_json
from impruver_core.io.manifest import read_manifest
from impruver_core.io.model_files import CONTEXT_KEYS, get_context_length

from impruver_gguf.ollama.go_template import translate_to_go
from impruver_gguf.sections import GgufSection
from impruver_gguf.vocab.saved_tokenizer import read_chat_template, read_special_tokens, read_tokenizer_config

FENCE = '"""'
ALLOWED_CONTROLS = "\n\r\t"  # not printable, and not dropped
MAX_DEFAULT_CTX = 8192  # tokens: Ollama takes memory for all of them, and models of 131,072 and more are usual
MANIFEST_KEYS = {"counts": {"longest_row": INDEX}, "recipe": {"chat": {"system_prompt": TEXT}}}
SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")  # what Ollama knows of transformers' values
SAMPLING_KEYS = {**dict.fromkeys(SAMPLING, NUMBER), "top_k": WHOLE, "do_sample": FLAG}


@dataclass(frozen=True)
class ModelDefaults:
    """What the Modelfiles of all files of a model say."""

    stops: Sequence[str]  # the texts that end a turn
    num_ctx: int | None  # the context in tokens; None leaves it to Ollama, or to `parameters`
    parameters: Mapping[str, Any]  # further PARAMETER lines; a list makes several, those of `stop` add to `stops`
    system: str | None = None
    template: str | None = None  # in Go's language, where Ollama would take another than the GGUF's
    num_ctx_reason: str = ""  # what the context comes from, for people


def format_modelfile(gguf_name: str, defaults: ModelDefaults) -> str:
    """Format the Modelfile that stands beside the GGUF file `gguf_name`."""
    settings = dict(defaults.parameters)
    if defaults.num_ctx:
        settings = {"num_ctx": defaults.num_ctx, **settings}
    further = settings.pop("stop", [])
    stops = dict.fromkeys([*defaults.stops, *(further if isinstance(further, list) else [further])])
    lines = [f"FROM ./{gguf_name}"]
    lines += [f"PARAMETER stop {quote(str(text), 'stop')}" for text in stops]
    for name, value in settings.items():
        values = value if isinstance(value, list) else [value]
        lines += [f"PARAMETER {name} {_format_value(each, name)}" for each in values]
    if defaults.template:
        lines.append(f"TEMPLATE {quote(defaults.template, 'the chat template')}")
    if defaults.system:
        lines.append(f"SYSTEM {quote(defaults.system, 'the system prompt')}")
    return "\n".join(lines) + "\n"


def quote(text: str, what: str) -> str:
    """Quote a text so that Ollama reads it back unchanged; ImpruverError where no quotes can hold it."""
    if not re.search(r'[\r\n]|^"', drop_unprintable(text)):
        return f'"{text}"'
    unquotable = find_unquotable_lines(text)
    if unquotable:
        raise ImpruverError(
            f'{what}: a line that ends in """ ends the text in a Modelfile; change that line: {unquotable[0]}'
        )
    return f"{FENCE}{text}{FENCE}"


def find_unquotable_lines(text: str) -> list[str]:
    """Find the lines that would end a text in a Modelfile."""
    return [line for line in re.split(r"[\r\n]", drop_unprintable(text))[:-1] if line.rstrip().endswith(FENCE)]


def drop_unprintable(text: str) -> str:
    """The text as Ollama reads it, before it looks for quotes: less what is no printable character."""
    if text.isprintable():
        return text
    return "".join(char for char in text if char.isprintable() or char in ALLOWED_CONTROLS)


def warn_about_dropped_characters(text: str | None) -> None:
    """Warn about characters of a system prompt that Ollama drops as it reads the Modelfile."""
    dropped = dict.fromkeys(char for char in text or "" if not drop_unprintable(char))
    if dropped:
        codes = ", ".join(f"U+{ord(char):04X}" for char in dropped)
        warn(f"the system prompt: Ollama drops characters that do not print, here {codes}")


def _format_value(value: object, name: str) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, (int, float)) else quote(str(value), f"gguf.parameters.{name}")


def read_training_manifest(path: Path) -> dict[str, Any]:
    """Read the manifest that training left; {} where there is none."""
    manifest = read_manifest(path) or {}
    check_keys(manifest, MANIFEST_KEYS, path)
    return manifest


def get_turn_ends(output_dir: Path, training: Mapping[str, Any]) -> list[str]:
    """The texts that end a turn: those in training's manifest, else the chat template's; [] without either."""
    if training.get("end_of_turn"):
        return list(training["end_of_turn"])
    template = read_chat_template(output_dir)
    return end_of_turn(template, read_special_tokens(output_dir)) if template else []


def get_model_context(output_dir: Path) -> int | None:
    """The most tokens that a model is made for; None where its configuration does not say."""
    keys = dict.fromkeys(CONTEXT_KEYS, COUNT)
    return get_context_length(read_json(output_dir / "config.json", keys, missing_ok=True))


def choose_num_ctx(output_dir: Path, training: Mapping[str, Any]) -> tuple[int, str]:
    """Choose the context of the Modelfiles in tokens, and why: room for each row of training, and for usual chats."""
    limit, longest = get_model_context(output_dir), (training.get("counts") or {}).get("longest_row") or 0
    usual = min(limit or MAX_DEFAULT_CTX, MAX_DEFAULT_CTX)
    if longest > usual:
        return longest, "the longest row of training"
    return usual, "the model's limit" if limit == usual else f"the model's limit is {limit:,}" if limit else "as usual"


def get_sampling_parameters(output_dir: Path, chat: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's sampling parameters by the recipe's chat section, else by generation_config.json."""
    saved = read_json(output_dir / "generation_config.json", SAMPLING_KEYS, missing_ok=True)
    wanted = {name: chat[name] for name in SAMPLING_KEYS if chat.get(name) is not None}
    if "do_sample" not in wanted and any(name in wanted for name in ("temperature", "top_p", "top_k")):
        wanted["do_sample"] = True  # as impruver-chat takes it
    values = {name: saved[name] for name in SAMPLING_KEYS if saved.get(name) is not None} | wanted
    renamed = {"repetition_penalty": "repeat_penalty"}
    parameters = {renamed.get(name, name): values[name] for name in SAMPLING if name in values}
    if values.get("do_sample") is False:
        greedy = {name: value for name, value in parameters.items() if name == "repeat_penalty"}
        parameters = greedy | {"temperature": 0}
    if parameters.get("repeat_penalty", 1) != 1:
        parameters["repeat_last_n"] = -1  # transformers' reaches back to the start
    return parameters


def find_model_defaults(
    output_dir: Path, stops: Sequence[str], training: Mapping[str, Any], section: GgufSection, chat: Mapping[str, Any]
) -> ModelDefaults:
    """Find what Modelfiles say: what the recipe's `gguf` and `chat` sections ask for, else what training left."""
    trained = (training.get("recipe") or {}).get("chat") or {}
    system = section.system_prompt or chat.get("system_prompt") or trained.get("system_prompt")
    warn_about_dropped_characters(system)
    num_ctx, reason = choose_num_ctx(output_dir, training)
    if section.num_ctx:
        num_ctx, reason = section.num_ctx, "gguf.num_ctx"
    if "num_ctx" in section.parameters:
        num_ctx, reason = section.parameters["num_ctx"], "gguf.parameters"
    parameters = get_sampling_parameters(output_dir, chat) | section.parameters
    template = translated = read_chat_template(output_dir)
    if template:
        named = read_special_tokens(output_dir)
        bos_added = named.get("bos_token") if read_tokenizer_config(output_dir).get("add_bos_token") else None
        translated = translate_to_go(template, named, bos_added)
    if translated and find_unquotable_lines(translated):
        warn('the chat template has a line that ends in """, which a Modelfile can\'t hold: no TEMPLATE is written')
        translated = None
    return ModelDefaults(stops, num_ctx, parameters, system, translated, reason)
