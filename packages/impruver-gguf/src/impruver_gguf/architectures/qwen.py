"""Qwen2 (and 2.5) and Qwen3, without experts."""

from __future__ import annotations

from dataclasses import replace

from impruver_gguf.architectures import decoder
from impruver_gguf.architectures.architecture import Config
from impruver_gguf.architectures.rope import unlike

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


QWEN2 = decoder.architecture(
    name="qwen2",
    defaults=decoder.DEFAULTS
    | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768}
    | {"sliding_window": 4096, "max_window_layers": 28},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | ALWAYS_BIASED | decoder.FEED_FORWARD,
    check=check_qwen2,
)


QWEN3 = replace(
    QWEN2,
    name="qwen3",
    defaults=QWEN2.defaults | {"head_dim": 128},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | decoder.HEAD_NORMS | decoder.FEED_FORWARD,
    check=check_qwen3,
)
