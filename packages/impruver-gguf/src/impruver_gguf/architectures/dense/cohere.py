"""Cohere's Command R and R+ (`CohereForCausalLM`), Command R7B and Command A (`Cohere2ForCausalLM`).

Attention and feed-forward read the same norm, logits are scaled, input and output embeddings are one matrix.
"""

from dataclasses import replace

from gguf import GGUFWriter, RopeScalingType
from impruver_core.io.json_schema import COUNT, FLAG, POSITIVE

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.dense.gemma3 import FULL, SLIDING

ABSENT = ("output.weight", "blk.ffn_norm.weight")  # what other decoders have
SHAPES = decoder.EMBEDDINGS | decoder.ATTENTION | decoder.FEED_FORWARD
COHERE2_SHAPES = {name: sizes for name, sizes in SHAPES.items() if name not in ABSENT}
HEAD_NORMS = {
    "blk.attn_q_norm.weight": ("num_attention_heads", "head_dim"),
    "blk.attn_k_norm.weight": ("num_key_value_heads", "head_dim"),
}
NORMED_FROM = 64  # layers from which llama.cpp takes a Command R for one with norms of queries and keys
FULL_EVERY = 4  # llama.cpp's Cohere 2 has neither window nor RoPE in each fourth layer


def get_cohere_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes name."""
    heads = {"num_attention_heads": config["num_attention_heads"]}
    return decoder.get_sizes(config) | heads | {"num_key_value_heads": decoder.get_kv_head_count(config)}


def get_cohere_optional(config: Config) -> list[str]:
    """The norms of queries and keys, where no key asks for them."""
    return [] if config.get("use_qk_norm") else [*HEAD_NORMS]


def find_cohere_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: there the number of layers says whether queries are normed."""
    has_norms, count = bool(config.get("use_qk_norm")), config["num_hidden_layers"]
    if has_norms != (count >= NORMED_FROM):
        return f"use_qk_norm {str(has_norms).lower()} in {count} layers"
    return _find_unsupported(config)


def find_cohere2_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: other layers with a window, a part of a head without RoPE."""
    count, step = config["num_hidden_layers"], config.get("sliding_window_pattern", FULL_EVERY)
    kinds = config.get("layer_types") or [SLIDING if (layer + 1) % step else FULL for layer in range(count)]
    if kinds != [SLIDING if (layer + 1) % FULL_EVERY else FULL for layer in range(count)]:
        return f"layer_types other than full attention in each {FULL_EVERY}th"
    if config["rotary_pct"] != 1:
        return f"rotary_pct {config['rotary_pct']}"
    return _find_unsupported(config)


def _find_unsupported(config: Config) -> str | None:
    if not config["tie_word_embeddings"]:
        return "tie_word_embeddings false"
    if config.get("attention_bias"):
        return "attention_bias"
    other = decoder.find_other_head_dim(config)
    return other or decoder.find_unsupported_rope(config, ("default",)) or decoder.find_unsupported(config)


def set_cohere_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, its context by `model_max_length`, and by what logits are multiplied."""
    context = config.get("model_max_length", config["max_position_embeddings"])
    decoder.set_gguf_parameters(writer, config | {"max_position_embeddings": context}, file_type)
    writer.add_logit_scale(config["logit_scale"])
    writer.add_rope_scaling_type(RopeScalingType.NONE)


def set_cohere2_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, the factor of logits, the window and how much of a head RoPE turns."""
    head_dim = decoder.get_head_dim(config)
    decoder.set_gguf_parameters(writer, config | {"head_dim": head_dim}, file_type)
    writer.add_logit_scale(config["logit_scale"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_scaling_type(RopeScalingType.NONE)


DEFAULTS = (
    {name: value for name, value in decoder.DEFAULTS.items() if name != "rms_norm_eps"}
    | {"vocab_size": 256000, "hidden_size": 8192, "intermediate_size": 22528, "num_hidden_layers": 40}
    | {"num_attention_heads": 64, "max_position_embeddings": 8192, "layer_norm_eps": 1e-5, "logit_scale": 0.0625}
    | {"tie_word_embeddings": True}
)
COHERE = decoder.make_architecture(
    name="command-r",
    keys=decoder.KEYS | {"logit_scale": POSITIVE, "model_max_length": COUNT, "use_qk_norm": FLAG},
    defaults=DEFAULTS | {"rope_theta": 500000.0},
    shapes=COHERE2_SHAPES | HEAD_NORMS,
    get_sizes=get_cohere_sizes,
    get_optional=get_cohere_optional,
    prepare_tensors=decoder.drop_tied_output,
    find_unsupported=find_cohere_unsupported,
    set_gguf_parameters=set_cohere_gguf_parameters,
)
COHERE2 = replace(
    COHERE,
    name="cohere2",
    keys=decoder.KEYS | {"logit_scale": POSITIVE, "rotary_pct": POSITIVE, "sliding_window_pattern": COUNT},
    defaults=DEFAULTS | {"sliding_window": 4096, "rotary_pct": 1.0},
    shapes=COHERE2_SHAPES,
    get_sizes=decoder.get_sizes,
    get_optional=lambda config: (),
    find_unsupported=find_cohere2_unsupported,
    set_gguf_parameters=set_cohere2_gguf_parameters,
)
