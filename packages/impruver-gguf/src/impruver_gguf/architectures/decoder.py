"""What Llama and its kin share: the names in config.json, sizes, shapes, and hyperparameters in llama.cpp's order."""

from __future__ import annotations

from functools import partial
from typing import Any

from impruver_core.io.json_schema import COUNT, FLAG, INDEX, POSITIVE, TEXT, list_of

from impruver_gguf.architectures.architecture import Architecture, Config
from impruver_gguf.architectures.rope import ROPE_KEYS, rope_of, write_scaling

SIZES = ("vocab_size", "hidden_size", "intermediate_size")


KEYS = {
    **dict.fromkeys((*SIZES, "num_hidden_layers", "max_position_embeddings"), COUNT),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), COUNT),
    **dict.fromkeys(("rms_norm_eps", "rope_theta", "partial_rotary_factor"), POSITIVE),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "is_causal", "use_sliding_window"), FLAG),
    **dict.fromkeys(("sliding_window", "max_window_layers"), INDEX),
    "hidden_act": TEXT,
    "layer_types": list_of(TEXT),
    "rope_parameters": ROPE_KEYS,
    "rope_scaling": ROPE_KEYS,
}


QUERIES, KEY_VALUES = "num_attention_heads x head_dim", "num_key_value_heads x head_dim"


EMBEDDINGS = {
    "token_embd.weight": ("vocab_size", "hidden_size"),
    "output.weight": ("vocab_size", "hidden_size"),
    "output_norm.weight": ("hidden_size",),
}


ATTENTION = {
    "blk.attn_norm.weight": ("hidden_size",),
    "blk.attn_q.weight": (QUERIES, "hidden_size"),
    "blk.attn_k.weight": (KEY_VALUES, "hidden_size"),
    "blk.attn_v.weight": (KEY_VALUES, "hidden_size"),
    "blk.attn_output.weight": ("hidden_size", QUERIES),
}


ATTENTION_BIASES = {
    "blk.attn_q.bias": (QUERIES,),
    "blk.attn_k.bias": (KEY_VALUES,),
    "blk.attn_v.bias": (KEY_VALUES,),
    "blk.attn_output.bias": ("hidden_size",),
}


HEAD_NORMS = {"blk.attn_q_norm.weight": ("head_dim",), "blk.attn_k_norm.weight": ("head_dim",)}


FEED_FORWARD = {
    "blk.ffn_norm.weight": ("hidden_size",),
    "blk.ffn_gate.weight": ("intermediate_size", "hidden_size"),
    "blk.ffn_up.weight": ("intermediate_size", "hidden_size"),
    "blk.ffn_down.weight": ("hidden_size", "intermediate_size"),
}


DEFAULTS = {  # transformers', for most families
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def head_of(config: Config) -> int:
    """How wide a head is."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def groups_of(config: Config) -> int:
    """Heads of keys and values, which several queries share."""
    return config.get("num_key_value_heads", config["num_attention_heads"])


def sizes_of(config: Config) -> dict[str, int]:
    """The sizes that shapes name."""
    head = head_of(config)
    sizes = {name: config[name] for name in SIZES} | {"head_dim": head}
    return sizes | {QUERIES: config["num_attention_heads"] * head, KEY_VALUES: groups_of(config) * head}


def contradiction_of(config: Config) -> str | None:
    """What no decoder can be."""
    heads, groups = config["num_attention_heads"], groups_of(config)
    if heads % groups:
        return f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
    if not config.get("head_dim") and config["hidden_size"] % heads:
        return f"hidden_size {config['hidden_size']} is no multiple of num_attention_heads {heads}"
    if rope_of(config)["rope_type"] == "yarn" and "original_max_position_embeddings" not in rope_of(config):
        return "rope_type yarn comes without original_max_position_embeddings"
    return f"head_dim {head_of(config)} is odd, and RoPE turns pairs" if head_of(config) % 2 else None


def unlike(config: Config, activation: str = "silu") -> str | None:
    """What llama.cpp would not compute as transformers does."""
    if config.get("is_causal") is False:
        return "is_causal false"
    return f"hidden_act {config['hidden_act']}" if config["hidden_act"] != activation else None


def slides(config: Config) -> bool:
    """Whether some layers see a window only, which llama.cpp does not know of these families."""
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return False
    if config.get("layer_types"):
        return "sliding_attention" in config["layer_types"]
    return config.get("max_window_layers", config["num_hidden_layers"]) < config["num_hidden_layers"]


def parameters(writer: Any, config: Config, file_type: int, local_theta: float | None = None) -> None:
    """What llama.cpp's script writes of every decoder; how wide a head is where the configuration names it."""
    rope = rope_of(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(groups_of(config))
    write_scaling(writer, rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if local_theta is not None:
        writer.add_rope_freq_base_swa(local_theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_file_type(file_type)


# A row of the table, with what decoders have in common.
architecture = partial(
    Architecture,
    blocks="num_hidden_layers",
    tied=("model.embed_tokens", "lm_head"),
    keys=KEYS,
    contradiction=contradiction_of,
    sizes=sizes_of,
    parameters=parameters,
)
