"""What is known of the trained chat: where a turn ends, how long its context is, its system prompt, its sampling."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_core import end_of_turn
from impruver_core.cli.console import warn
from impruver_core.io.json_schema import COUNT, FLAG, NUMBER, TEXT, WHOLE, check_keys, read_json
from impruver_core.io.manifest import read_manifest

from impruver_gguf.ollama.go_template import go_template
from impruver_gguf.ollama.modelfile import broken_lines
from impruver_gguf.vocab.vocabulary import chat_template, special_tokens, tokenizer_config

TRAINED_KEYS = {"max_tokens_count": COUNT, "recipe": {"chat": {"system_prompt": TEXT}}}


SAMPLING = {  # transformers' → Ollama's
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}


SAMPLING_KEYS = {**dict.fromkeys(SAMPLING, NUMBER), "top_k": WHOLE, "do_sample": FLAG}


CONTEXTS = ("max_position_embeddings", "n_positions", "n_ctx")


def read_trained(path: Path) -> dict[str, Any]:
    """The manifest that training left; {} where there is none."""
    trained = read_manifest(path) or {}
    check_keys(trained, TRAINED_KEYS, path)
    return trained


def turn_ends(output_dir: Path, trained: dict[str, Any]) -> list[str]:
    """The texts that end a turn: training's manifest tells them, else the chat template; [] without either."""
    if trained.get("end_of_turn"):
        return list(trained["end_of_turn"])
    template = chat_template(output_dir)
    return end_of_turn(template, special_tokens(output_dir)) if template else []


def ollama_template(output_dir: Path) -> str | None:
    """The chat template in Go's language where Ollama would not do right with the one in the GGUF."""
    template = chat_template(output_dir)
    if not template:
        return None
    config, named = tokenizer_config(output_dir), special_tokens(output_dir)
    written = go_template(template, named, named.get("bos_token") if config.get("add_bos_token") else None)
    if written and broken_lines(written):
        warn('the chat template has a line that ends in """, which a Modelfile can\'t hold: no TEMPLATE is written')
        return None
    return written


def context_length(output_dir: Path, trained: dict[str, Any]) -> int | None:
    """Tokens that a row of training could have, else what the model was made for."""
    if trained.get("max_tokens_count"):
        return trained["max_tokens_count"]
    path = output_dir / "config.json"
    config = read_json(path, dict.fromkeys(CONTEXTS, COUNT)) if path.is_file() else {}
    return next((config[name] for name in CONTEXTS if config.get(name)), None)


def chat_system_prompt(chat: Any, trained: dict[str, Any]) -> str | None:
    """The recipe's chat.system_prompt, read by impruver-chat's section or not; else that of the trained recipe."""
    now = chat.get("system_prompt") if isinstance(chat, dict) else getattr(chat, "system_prompt", None)
    then = (trained.get("recipe") or {}).get("chat") or {}
    return now or then.get("system_prompt")


def sampling(output_dir: Path, chat: Any) -> dict[str, Any]:
    """PARAMETER names with values; {} where neither says anything. `chat`: the recipe's section, read or not."""
    path = output_dir / "generation_config.json"
    saved = read_json(path, SAMPLING_KEYS) if path.is_file() else {}
    given = chat if isinstance(chat, dict) else vars(chat) if chat is not None else {}
    given = {name: given[name] for name in SAMPLING_KEYS if given.get(name) is not None}
    if "do_sample" not in given and any(name in given for name in ("temperature", "top_p", "top_k")):
        given["do_sample"] = True  # as impruver-chat takes it
    values = {name: saved[name] for name in SAMPLING_KEYS if saved.get(name) is not None} | given
    found = {ollamas: values[name] for name, ollamas in SAMPLING.items() if name in values}
    if values.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name == "repeat_penalty"} | {"temperature": 0}
    if found.get("repeat_penalty", 1) != 1:
        found["repeat_last_n"] = -1  # transformers' reaches back to the start
    return found
