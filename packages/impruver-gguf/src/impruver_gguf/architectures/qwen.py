"""Qwen2 (and 2.5) and Qwen3, without experts."""

from __future__ import annotations

from typing import Any

from impruver_gguf.architectures import decoder
from impruver_gguf.architectures.rope import unlike
from impruver_gguf.architectures.row import Architecture, Config

ALWAYS_BIASED = {name: sizes for name, sizes in decoder.ATTENTION_BIASES.items() if name != "blk.attn_output.bias"}


def check_qwen(config: Config) -> str | None:
    if decoder.slides(config):
        return "sliding windows"
    return unlike(config, ("default", "linear", "yarn")) or decoder.unlike(config)


def check_qwen2(config: Config) -> str | None:
    """llama.cpp refuses to load heads that are not as wide as the model makes them."""
    width = config["num_attention_heads"] * decoder.head_of(config)
    return f"head_dim {decoder.head_of(config)}" if width != config["hidden_size"] else check_qwen(config)


def check_qwen3(config: Config) -> str | None:
    """It knows no biases of Qwen3's either."""
    return "attention_bias" if config.get("attention_bias") else check_qwen(config)


def qwen_parameters(writer: Any, config: Config, file_type: int) -> None:
    decoder.parameters(writer, config, file_type, config.get("head_dim"))


DEFAULTS = {
    "vocab_size": 151936,
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
    "sliding_window": 4096,
    "max_window_layers": 28,
}
QWEN2 = Architecture(
    name="qwen2",
    keys=decoder.KEYS,
    defaults=DEFAULTS,
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | ALWAYS_BIASED | decoder.FEED_FORWARD,
    contradiction=decoder.contradiction_of,
    sizes=decoder.sizes_of,
    check=check_qwen2,
    parameters=qwen_parameters,
    **decoder.COMMON,
)
QWEN3 = Architecture(
    name="qwen3",
    keys=decoder.KEYS,
    defaults=DEFAULTS | {"head_dim": 128},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | decoder.HEAD_NORMS | decoder.FEED_FORWARD,
    contradiction=decoder.contradiction_of,
    sizes=decoder.sizes_of,
    check=check_qwen3,
    parameters=qwen_parameters,
    **decoder.COMMON,
)
