"""What Llama-like decoders share: keys of config.json, sizes, shapes, and hyperparameters in llama.cpp's order."""

from functools import partial

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, POSITIVE, TEXT, list_of

from impruver_gguf.architectures.architecture import Architecture, Config
from impruver_gguf.architectures.rope import ROPE_KEYS, get_rope, write_rope_scaling
from impruver_gguf.merging.merge import TiedModules

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
    name.replace(".weight", ".bias"): sizes[:1] for name, sizes in ATTENTION.items() if name != "blk.attn_norm.weight"
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


def get_head_dim(config: Config) -> int:
    """The width of an attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def get_kv_head_count(config: Config) -> int:
    """The number of key and value heads, which several query heads share."""
    return config.get("num_key_value_heads", config["num_attention_heads"])


def get_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes of this module name."""
    head_dim = get_head_dim(config)
    sizes = {name: config[name] for name in SIZES} | {"head_dim": head_dim}
    heads, kv_heads = config["num_attention_heads"], get_kv_head_count(config)
    return sizes | {QUERIES: heads * head_dim, KEY_VALUES: kv_heads * head_dim}


def find_contradiction(config: Config) -> str | None:
    """Name what in a configuration no decoder can have."""
    heads, kv_heads, head_dim = config["num_attention_heads"], get_kv_head_count(config), get_head_dim(config)
    if heads % kv_heads:
        return f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
    if not config.get("head_dim") and config["hidden_size"] % heads:
        return f"hidden_size {config['hidden_size']} is no multiple of num_attention_heads {heads}"
    rope = get_rope(config)
    if rope["rope_type"] == "yarn" and "original_max_position_embeddings" not in rope:
        return "rope_type yarn comes without original_max_position_embeddings"
    return f"head_dim {head_dim} is odd, and RoPE turns pairs" if head_dim % 2 else None


def find_unsupported(config: Config, activation: str = "silu") -> str | None:
    """Name what llama.cpp would compute otherwise than transformers in any decoder."""
    if config.get("is_causal") is False:
        return "is_causal false"
    return f"hidden_act {config['hidden_act']}" if config["hidden_act"] != activation else None


def has_sliding_window(config: Config) -> bool:
    """Whether some layers attend to a window only, which llama.cpp does not know of these families."""
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return False
    if config.get("layer_types"):
        return "sliding_attention" in config["layer_types"]
    return config.get("max_window_layers", config["num_hidden_layers"]) < config["num_hidden_layers"]


def set_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int, local_theta: float | None = None) -> None:
    """Write what llama.cpp's converter writes of every decoder; the head's width where the configuration names it."""
    rope = get_rope(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(get_kv_head_count(config))
    write_rope_scaling(writer, rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    if local_theta is not None:
        writer.add_rope_freq_base_swa(local_theta)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if config.get("head_dim"):
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    writer.add_file_type(file_type)


# Makes an `Architecture` with what decoders have in common.
make_architecture = partial(
    Architecture,
    blocks="num_hidden_layers",
    tied=TiedModules("model.embed_tokens", "lm_head"),
    keys=KEYS,
    find_contradiction=find_contradiction,
    get_sizes=get_sizes,
    set_gguf_parameters=set_gguf_parameters,
)
