"""RoPE's parameters in config.json, and what GGUF holds of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from impruver_core.io.json_schema import COUNT, NUMBER, POSITIVE, TEXT, list_of

from impruver_gguf.architectures.architecture import Config
from impruver_gguf.weights.lazy_tensor import Tensor

ROPE_KEYS = {
    "rope_type": TEXT,
    "type": TEXT,
    "original_max_position_embeddings": COUNT,
    **dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), POSITIVE),
    **dict.fromkeys(("extrapolation_factor", "attention_factor", "attn_factor", "beta_fast", "beta_slow"), NUMBER),
    **dict.fromkeys(("long_factor", "short_factor"), list_of(NUMBER)),
    "partial_rotary_factor": POSITIVE,
}


# What else may stand beside yarn, and the values for which llama.cpp computes what transformers does.
YARN = {
    **dict.fromkeys(("attention_factor", "attn_factor", "mscale_all_dim"), None),
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
}


def rope_of(config: Config) -> Config:
    """RoPE's parameters, under the names of transformers 5 wherever they stand."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {name: value for name, value in rope.items() if value is not None}
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if rope["rope_type"] == "llama3":
        rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return rope


def unlike(config: Config, kinds: tuple[str, ...]) -> str | None:
    """What of RoPE llama.cpp would not compute as transformers does, where it knows `kinds`."""
    rope = rope_of(config)
    if rope["rope_type"] not in kinds:
        return f"rope_type {rope['rope_type']}"
    if rope["partial_rotary_factor"] != 1:
        return "partial_rotary_factor"
    odd = [name for name, usual in YARN.items() if rope["rope_type"] == "yarn" and rope.get(name, usual) != usual]
    return f"{odd[0]} {rope[odd[0]]} of yarn" if odd else None


def write_scaling(writer: Any, rope: Config) -> None:
    """How positions beyond the first training are scaled, where GGUF has keys for it."""
    import gguf

    kind = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}.get(rope["rope_type"])
    if kind is None or rope.get("factor") is None:
        return
    writer.add_rope_scaling_type(kind)
    writer.add_rope_scaling_factor(rope["factor"])
    if kind is gguf.RopeScalingType.YARN:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        rope = {"attention_factor": rope.get("attn_factor")} | rope
        for name, add in (
            ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(name) is not None:
                add(rope[name])


def divisors(numbers: Iterable[float]) -> Tensor:
    """By what RoPE's frequencies are divided, as GGUF holds it."""
    values = np.array(list(numbers), np.float32)
    return Tensor(values.shape, lambda start, stop: values[start:stop])


def llama3_factors(rope: Config, width: int) -> Iterator[np.float32]:
    """By what Llama 3.x divides each of RoPE's frequencies."""
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    powers = np.power(float(rope["rope_theta"]), exponents.astype(np.float64)).astype(np.float32)
    factor, context = rope.get("factor", 8.0), rope.get("original_max_position_embeddings", 8192)
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    for frequency in np.float32(1) / powers:
        wavelength = np.float32(2 * math.pi) / frequency
        if wavelength < context / high:
            yield np.float32(1)
        elif wavelength > context / low:
            yield np.float32(factor)
        else:
            smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
            yield np.float32(1) / ((np.float32(1) - smooth) / np.float32(factor) + smooth)
