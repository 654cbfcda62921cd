"""Phi-3 and Phi-4: queries, keys and values in one matrix, gate and up in another; long RoPE."""

import math

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.lazy_tensor import LazyTensor

QKV, GATE_UP, ORIGINAL = "queries, keys and values", "2 x intermediate_size", "original_max_position_embeddings"
LONG_ROPE = ("longrope", "su", "yarn")  # the last two are its older names
SHAPES = decoder.EMBEDDINGS | {
    "blk.attn_norm.weight": ("hidden_size",),
    "blk.attn_qkv.weight": (QKV, "hidden_size"),
    "blk.attn_output.weight": ("hidden_size", decoder.QUERIES),
    "blk.ffn_norm.weight": ("hidden_size",),
    "blk.ffn_up.weight": (GATE_UP, "hidden_size"),
    "blk.ffn_down.weight": ("hidden_size", "intermediate_size"),
}


def find_phi3_contradiction(config: Config) -> str | None:
    """Name what in a configuration no Phi-3 can have: long RoPE with a wrong number of factors, and a decoder's."""
    rope, pairs = decoder.get_rope(config), get_rotary_dim(config) // 2
    for name in ("long_factor", "short_factor"):
        if rope["rope_type"] in LONG_ROPE and len(rope.get(name) or []) != pairs:
            return f"{name} holds {len(rope.get(name) or [])} factors, and should hold {pairs}"
    return decoder.find_contradiction(config)


def get_phi3_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` names."""
    sizes = decoder.get_sizes(config)
    qkv = (config["num_attention_heads"] + 2 * decoder.get_kv_head_count(config)) * sizes["head_dim"]
    return sizes | {QKV: qkv, GATE_UP: 2 * config["intermediate_size"]}


def find_phi3_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: RoPE, activation."""
    rope = decoder.get_rope(config)
    if rope["rope_type"] not in ("default", *LONG_ROPE):
        return f"rope_type {rope['rope_type']}"
    return decoder.find_unsupported(config)


def get_rotary_dim(config: Config) -> int:
    """How many values of a head RoPE turns."""
    share = decoder.get_rope(config)["partial_rotary_factor"]
    return int(share * config["hidden_size"]) // config["num_attention_heads"]


def get_original_context(config: Config) -> int:
    """The context of the first training; for long RoPE the key outside counts, as for transformers."""
    rope = decoder.get_rope(config)
    return config[ORIGINAL] if rope["rope_type"] in LONG_ROPE else rope.get(ORIGINAL, config[ORIGINAL])


def set_phi3_leading_parameters(writer: GGUFWriter, config: Config) -> None:
    """Write by what attention is multiplied where the context is longer than in the first training."""
    if decoder.get_rope(config)["rope_type"] in LONG_ROPE:
        original = get_original_context(config)
        scale = config["max_position_embeddings"] / original
        factor = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        writer.add_rope_scaling_attn_factors(factor)


def generate_phi3_extra_tensors(config: Config) -> dict[str, LazyTensor]:
    """Make the factors of long RoPE in long and short contexts, which GGUF holds as tensors."""
    rope = decoder.get_rope(config)
    if rope["rope_type"] not in LONG_ROPE:
        return {}
    return {
        f"rope_factors_{kind}.weight": decoder.make_factors_tensor(rope[f"{kind}_factor"]) for kind in ("long", "short")
    }


def set_phi3_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters in llama.cpp's order, which is another than other decoders'."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_scaling_orig_ctx_len(get_original_context(config))
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(decoder.get_kv_head_count(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_dimension_count(get_rotary_dim(config))
    writer.add_rope_freq_base(decoder.get_rope(config)["rope_theta"])
    writer.add_file_type(file_type)
    writer.add_sliding_window(config.get("sliding_window") or 0)


PHI3 = decoder.make_architecture(
    name="phi3",
    keys=decoder.KEYS | {ORIGINAL: COUNT},
    defaults=decoder.DEFAULTS
    | {"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "rms_norm_eps": 1e-5}
    | {"max_position_embeddings": 4096, ORIGINAL: 4096},
    shapes=SHAPES,
    find_contradiction=find_phi3_contradiction,
    get_sizes=get_phi3_sizes,
    find_unsupported=find_phi3_unsupported,
    set_leading_parameters=set_phi3_leading_parameters,
    set_gguf_parameters=set_phi3_gguf_parameters,
    generate_extra_tensors=generate_phi3_extra_tensors,
    plain_added=True,
)
