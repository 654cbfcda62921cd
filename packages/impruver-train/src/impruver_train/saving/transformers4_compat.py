"""Lets transformers 4.57, to which many servers are pinned, load what transformers 5 saved, and see the same in it."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

from impruver_core.io.atomic import atomic_write
from impruver_core.io.json_schema import read_json

TOKENIZER_CLASS = ("TokenizersBackend", "PreTrainedTokenizerFast")  # of 5, and the one that both know
TWICE = ("rope_theta", "partial_rotary_factor", "rope_scaling", "rope_local_base_freq")
SPECIAL = ("extra_special_tokens", "additional_special_tokens")


def widen_config(path: Path, kind: type) -> None:
    """Adds RoPE's parameters to config.json under the names of transformers 4, which would else take its defaults.

    `kind` is the configuration's class; where it would read the file differently then, or not at all, nothing is added.
    """
    saved = read_json(path)
    widened = saved | build_older_rope(saved)
    if isinstance(saved.get("text_config"), dict):
        widened["text_config"] = saved["text_config"] | build_older_rope(saved["text_config"])
    try:
        same = widened != saved and _interpret(kind, widened) == _interpret(kind, saved)
    except Exception:  # the class refuses them: Gemma 4's wants no theta for all layers
        same = False
    if same:
        _write_json(path, widened)


def _interpret(kind: type, config: dict[str, Any]) -> dict[str, Any]:
    """What a configuration's class makes of `config`, less names that stand in it twice."""
    read = kind.from_dict(deepcopy(config)).to_dict()
    return {name: value for name, value in read.items() if name not in TWICE}


def build_older_rope(config: dict[str, Any]) -> dict[str, Any]:
    """RoPE's parameters as transformers 4 has them: theta, scaling, and the theta of Gemma 3's local layers."""
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        names = {name: rope[name] for name in ("rope_theta", "partial_rotary_factor") if name in rope}
        scaling = {name: value for name, value in rope.items() if name not in names}
        return names | ({"rope_scaling": scaling} if rope.get("rope_type", "default") != "default" else {})
    full, local = rope.get("full_attention"), rope.get("sliding_attention") or {}
    if not full:
        return {}
    near = {"rope_local_base_freq": local["rope_theta"]} if "rope_theta" in local else {}
    return build_older_rope({"rope_parameters": full}) | near


def widen_tokenizer(path: Path) -> None:
    """Names the class and the further special tokens of tokenizer_config.json as both versions do."""
    saved = read_json(path)
    new, known = TOKENIZER_CLASS
    widened = saved | ({"tokenizer_class": known} if saved.get("tokenizer_class") == new else {})
    if isinstance(saved.get(SPECIAL[0]), list):  # transformers 4 wants an object there
        widened[SPECIAL[1]] = widened.pop(SPECIAL[0])
    if widened != saved:
        _write_json(path, widened)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
