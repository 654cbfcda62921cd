"""RoPE's parameters in config.json, and what GGUF holds of them."""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from gguf import GGUFWriter, RopeScalingType
from impruver_core.io.json_schema import COUNT, NUMBER, POSITIVE, TEXT, list_of

from impruver_gguf.architectures.architecture import Config
from impruver_gguf.weights.lazy_tensor import LazyTensor

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


def get_rope(config: Config) -> Config:
    """RoPE's parameters under the names of transformers 5, wherever a config.json has them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {name: value for name, value in rope.items() if value is not None}
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if rope["rope_type"] == "llama3":
        rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return rope


def find_unsupported_rope(config: Config, supported: tuple[str, ...]) -> str | None:
    """Name what of RoPE llama.cpp would compute otherwise than transformers, given the types that it supports."""
    rope = get_rope(config)
    if rope["rope_type"] not in supported:
        return f"rope_type {rope['rope_type']}"
    if rope["partial_rotary_factor"] != 1:
        return "partial_rotary_factor"
    odd = [name for name, usual in YARN.items() if rope["rope_type"] == "yarn" and rope.get(name, usual) != usual]
    return f"{odd[0]} {rope[odd[0]]} of yarn" if odd else None


def write_rope_scaling(writer: GGUFWriter, rope: Config) -> None:
    """Write how positions beyond the context of the first training are scaled, where GGUF has keys for it."""
    kind = {"linear": RopeScalingType.LINEAR, "yarn": RopeScalingType.YARN}.get(rope["rope_type"])
    if kind is None or rope.get("factor") is None:
        return
    writer.add_rope_scaling_type(kind)
    writer.add_rope_scaling_factor(rope["factor"])
    if kind is RopeScalingType.YARN:
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


def make_factors_tensor(factors: Iterable[float]) -> LazyTensor:
    """Make the tensor of the factors (head_dim / 2,) by which RoPE's frequencies are divided."""
    values = np.array(list(factors), np.float32)
    return LazyTensor(values.shape, lambda start, stop: values[start:stop])


def compute_llama3_factors(rope: Config, head_dim: int) -> Iterator[np.float32]:
    """Yield by what Llama 3.x divides each of RoPE's frequencies, in llama.cpp's float32 arithmetic."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
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
