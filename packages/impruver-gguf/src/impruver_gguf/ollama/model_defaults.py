"""Collect what is known of the trained chat: where a turn ends, its context, system prompt and sampling values."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from impruver_core import end_of_turn
from impruver_core.cli.console import warn
from impruver_core.io.json_schema import COUNT, FLAG, NUMBER, TEXT, WHOLE, check_keys, read_json
from impruver_core.io.manifest import read_manifest
from impruver_core.io.model_files import CONTEXT_KEYS, get_context_length

from impruver_gguf.ollama.go_template import translate_to_go
from impruver_gguf.ollama.modelfile import find_unquotable_lines
from impruver_gguf.vocab.saved_tokenizer import read_chat_template, read_special_tokens, read_tokenizer_config

MANIFEST_KEYS = {"max_tokens_count": COUNT, "recipe": {"chat": {"system_prompt": TEXT}}}
OLLAMA_NAMES = {  # transformers' sampling values → Ollama's parameters
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
SAMPLING_KEYS = {**dict.fromkeys(OLLAMA_NAMES, NUMBER), "top_k": WHOLE, "do_sample": FLAG}


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


def get_num_ctx(output_dir: Path, training: Mapping[str, Any]) -> int | None:
    """The most tokens that a row of training could have, else the model's own context."""
    if training.get("max_tokens_count"):
        return training["max_tokens_count"]
    keys = dict.fromkeys(CONTEXT_KEYS, COUNT)
    return get_context_length(read_json(output_dir / "config.json", keys, missing_ok=True))


def get_system_prompt(chat: Mapping[str, Any], training: Mapping[str, Any]) -> str | None:
    """The system prompt of the recipe's chat section, else of that which training's manifest holds."""
    trained = (training.get("recipe") or {}).get("chat") or {}
    return chat.get("system_prompt") or trained.get("system_prompt")


def get_sampling_parameters(output_dir: Path, chat: Mapping[str, Any]) -> dict[str, Any]:
    """Ollama's sampling parameters by the recipe's chat section, else by generation_config.json."""
    saved = read_json(output_dir / "generation_config.json", SAMPLING_KEYS, missing_ok=True)
    asked = {name: chat[name] for name in SAMPLING_KEYS if chat.get(name) is not None}
    if "do_sample" not in asked and any(name in asked for name in ("temperature", "top_p", "top_k")):
        asked["do_sample"] = True  # as impruver-chat takes it
    values = {name: saved[name] for name in SAMPLING_KEYS if saved.get(name) is not None} | asked
    parameters = {ollama_name: values[name] for name, ollama_name in OLLAMA_NAMES.items() if name in values}
    if values.get("do_sample") is False:
        greedy = {name: value for name, value in parameters.items() if name == "repeat_penalty"}
        parameters = greedy | {"temperature": 0}
    if parameters.get("repeat_penalty", 1) != 1:
        parameters["repeat_last_n"] = -1  # transformers' reaches back to the start
    return parameters


def build_ollama_template(output_dir: Path) -> str | None:
    """Translate the chat template to Go's language where Ollama would not do right with the one in the GGUF."""
    template = read_chat_template(output_dir)
    if not template:
        return None
    config, named = read_tokenizer_config(output_dir), read_special_tokens(output_dir)
    translated = translate_to_go(template, named, named.get("bos_token") if config.get("add_bos_token") else None)
    if translated and find_unquotable_lines(translated):
        warn('the chat template has a line that ends in """, which a Modelfile can\'t hold: no TEMPLATE is written')
        return None
    return translated
