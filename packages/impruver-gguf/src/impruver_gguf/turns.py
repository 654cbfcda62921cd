"""What is known of the trained chat: where a turn ends, how long its context is, its system prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_core import end_of_turn
from impruver_core.cli.console import warn
from impruver_core.files.manifest import read_manifest

from impruver_gguf.gotemplate import go_template
from impruver_gguf.jsonfile import COUNT, TEXT, check_keys, read_json
from impruver_gguf.modelfile import broken_lines
from impruver_gguf.vocabulary import chat_template, special_tokens, tokenizer_config

TRAINED_KEYS = {"max_tokens_count": COUNT, "recipe": {"chat": {"system_prompt": TEXT}}}
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
