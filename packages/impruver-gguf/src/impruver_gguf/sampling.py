"""How answers are to be drawn, in Ollama's words: the recipe's chat section, else generation_config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from impruver_gguf.jsonfile import FLAG, NUMBER, WHOLE, read_json

NAMES = {  # transformers' → Ollama's
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repeat_penalty",
}
KEYS = {**dict.fromkeys(NAMES, NUMBER), "top_k": WHOLE, "do_sample": FLAG}


def sampling(output_dir: Path, chat: Any) -> dict[str, Any]:
    """PARAMETER names with values; {} where neither says anything. `chat`: the recipe's section, read or not."""
    path = output_dir / "generation_config.json"
    saved = read_json(path, KEYS) if path.is_file() else {}
    given = chat if isinstance(chat, dict) else vars(chat) if chat is not None else {}
    given = {name: given[name] for name in KEYS if given.get(name) is not None}
    if "do_sample" not in given and any(name in given for name in ("temperature", "top_p", "top_k")):
        given["do_sample"] = True  # as impruver-chat takes it
    values = {name: saved[name] for name in KEYS if saved.get(name) is not None} | given
    found = {ollamas: values[name] for name, ollamas in NAMES.items() if name in values}
    if values.get("do_sample") is False:
        found = {name: value for name, value in found.items() if name == "repeat_penalty"} | {"temperature": 0}
    if found.get("repeat_penalty", 1) != 1:
        found["repeat_last_n"] = -1  # transformers' reaches back to the start
    return found
