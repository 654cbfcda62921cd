"""OLMo 2 and OLMo 3: norms after attention and feed-forward, and of all queries or keys at once; windows in OLMo 3."""

from dataclasses import replace

from gguf import GGUFWriter

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.dense.gemma3 import (
    FULL,
    NESTED_ROPE_KEYS,
    POST_NORMS,
    SLIDING,
    get_global_config,
    get_local_rope,
)

NORMS_BEFORE = ("blk.attn_norm.weight", "blk.ffn_norm.weight")  # what other decoders have
QK_NORMS = {"blk.attn_q_norm.weight": (decoder.QUERIES,), "blk.attn_k_norm.weight": (decoder.KEY_VALUES,)}
SHAPES = decoder.EMBEDDINGS | decoder.ATTENTION | QK_NORMS | POST_NORMS | decoder.FEED_FORWARD
FULL_EVERY = 4  # without layer_types each fourth layer of OLMo 3 attends to all
THETA = 500000.0  # OLMo 3's base of RoPE


def find_olmo2_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: RoPE, activation; tied ends, biases and windows have no place."""
    if config.get("sliding_window") is not None:  # transformers' OLMo 2 has none, llama.cpp would attend in it
        return "sliding_window"
    return _find_unsupported(config)


def find_olmo3_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: another RoPE in layers with a window, and what OLMo 2 has not."""
    global_config, local_rope = get_global_config(config), get_local_rope(config)
    kind = local_rope.get("rope_type", "default")
    if kind != "default":
        return f"rope_type {kind} of {SLIDING}"
    theta, local_theta = decoder.get_rope(global_config)["rope_theta"], get_local_theta(config)
    if local_theta != theta:
        return f"rope_theta {local_theta} of {SLIDING} beside {theta}"
    return _find_unsupported(global_config)


def _find_unsupported(config: Config) -> str | None:
    if config["tie_word_embeddings"]:
        return "tie_word_embeddings"
    if config.get("attention_bias"):
        return "attention_bias"
    other = decoder.find_other_head_dim(config)
    reason = other or decoder.find_unsupported_rope(config, ("default", "linear", "yarn"))
    return reason or decoder.find_unsupported(config)


def find_olmo3_contradiction(config: Config) -> str | None:
    """Name what in a configuration no OLMo 3 can have: wrong layer types, and a decoder's."""
    wrong = decoder.find_wrong_layer_types(config, (FULL, SLIDING))
    return wrong or decoder.find_contradiction(get_global_config(config))


def get_layer_types(config: Config) -> list[str]:
    """What each layer attends to."""
    count = config["num_hidden_layers"]
    return config.get("layer_types") or [FULL if (layer + 1) % FULL_EVERY == 0 else SLIDING for layer in range(count)]


def get_local_theta(config: Config) -> float:
    """RoPE's base in layers with a window: a rope_theta outside is that of the others alone, unless they name one."""
    named = (config.get("rope_parameters") or {}).get(FULL) or {}
    default = config["rope_theta"] if named.get("rope_theta") else THETA
    return get_local_rope(config).get("rope_theta") or default


def set_olmo3_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, the window and which layers have it."""
    decoder.set_gguf_parameters(writer, get_global_config(config), file_type, get_local_theta(config))
    writer.add_sliding_window(config["sliding_window"])
    writer.add_sliding_window_pattern([kind == SLIDING for kind in get_layer_types(config)])


OLMO2 = decoder.make_architecture(
    name="olmo2",
    defaults=decoder.DEFAULTS
    | {"vocab_size": 50304, "intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    shapes={name: sizes for name, sizes in SHAPES.items() if name not in NORMS_BEFORE},
    find_unsupported=find_olmo2_unsupported,
)
OLMO3 = replace(
    OLMO2,
    keys=decoder.KEYS | {"rope_parameters": NESTED_ROPE_KEYS},
    defaults=OLMO2.defaults | {"rope_theta": THETA, "sliding_window": 4096},
    find_contradiction=find_olmo3_contradiction,
    find_unsupported=find_olmo3_unsupported,
    set_gguf_parameters=set_olmo3_gguf_parameters,
)
