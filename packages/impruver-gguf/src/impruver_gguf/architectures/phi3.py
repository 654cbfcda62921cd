"""Phi-3 and Phi-4: queries, keys and values in one matrix, gate and up in another; long RoPE."""

from __future__ import annotations

import math
from typing import Any

from impruver_core.io.json_schema import COUNT

from impruver_gguf.architectures import decoder
from impruver_gguf.architectures.architecture import Config
from impruver_gguf.architectures.rope import divisors, rope_of
from impruver_gguf.weights.lazy_tensor import Tensor

QKV, GATE_UP, ORIGINAL = "queries, keys and values", "2 x intermediate_size", "original_max_position_embeddings"


LONG = ("longrope", "su", "yarn")  # the older names, for one thing


SHAPES = decoder.EMBEDDINGS | {
    "blk.attn_norm.weight": ("hidden_size",),
    "blk.attn_qkv.weight": (QKV, "hidden_size"),
    "blk.attn_output.weight": ("hidden_size", decoder.QUERIES),
    "blk.ffn_norm.weight": ("hidden_size",),
    "blk.ffn_up.weight": (GATE_UP, "hidden_size"),
    "blk.ffn_down.weight": ("hidden_size", "intermediate_size"),
}


def phi3_contradiction(config: Config) -> str | None:
    rope, pairs = rope_of(config), turned_of(config) // 2
    for name in ("long_factor", "short_factor"):
        if rope["rope_type"] in LONG and len(rope.get(name) or []) != pairs:
            return f"{name} holds {len(rope.get(name) or [])} factors, and should hold {pairs}"
    return decoder.contradiction_of(config)


def phi3_sizes(config: Config) -> dict[str, int]:
    sizes = decoder.sizes_of(config)
    head = sizes["head_dim"]
    qkv = (config["num_attention_heads"] + 2 * decoder.groups_of(config)) * head
    return sizes | {QKV: qkv, GATE_UP: 2 * config["intermediate_size"]}


def check_phi3(config: Config) -> str | None:
    rope = rope_of(config)
    if rope["rope_type"] not in ("default", *LONG):
        return f"rope_type {rope['rope_type']}"
    return decoder.unlike(config)


def turned_of(config: Config) -> int:
    """How many values of a head RoPE turns."""
    return int(rope_of(config)["partial_rotary_factor"] * config["hidden_size"]) // config["num_attention_heads"]


def original_of(config: Config) -> int:
    """The context of the first training; for long RoPE the key outside counts, as for transformers."""
    rope = rope_of(config)
    return config[ORIGINAL] if rope["rope_type"] in LONG else rope.get(ORIGINAL, config[ORIGINAL])


def write_phi3_first(writer: Any, config: Config) -> None:
    """By what attention grows where the context is longer than in the first training."""
    if rope_of(config)["rope_type"] in LONG:
        original = original_of(config)
        scale = config["max_position_embeddings"] / original
        grown = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(grown)


def phi3_extra(config: Config) -> dict[str, Tensor]:
    """By what RoPE's frequencies are divided in long and short contexts."""
    rope = rope_of(config)
    if rope["rope_type"] not in LONG:
        return {}
    return {f"rope_factors_{kind}.weight": divisors(rope[f"{kind}_factor"]) for kind in ("long", "short")}


def phi3_parameters(writer: Any, config: Config, file_type: int) -> None:
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(original_of(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(decoder.groups_of(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(turned_of(config))
    writer.add_rope_freq_base(rope_of(config)["rope_theta"])
    writer.add_file_type(file_type)
    writer.add_sliding_window(config.get("sliding_window") or 0)


PHI3 = decoder.architecture(
    name="phi3",
    keys=decoder.KEYS | {ORIGINAL: COUNT},
    defaults=decoder.DEFAULTS
    | {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "rms_norm_eps": 1e-5}
    | {"max_position_embeddings": 4096, ORIGINAL: 4096},
    shapes=SHAPES,
    contradiction=phi3_contradiction,
    sizes=phi3_sizes,
    check=check_phi3,
    first=write_phi3_first,
    parameters=phi3_parameters,
    extra=phi3_extra,
    plain_added=True,
)
