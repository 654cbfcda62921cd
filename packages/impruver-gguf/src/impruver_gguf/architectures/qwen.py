"""Qwen2 (and 2.5) and Qwen3, without experts."""

from dataclasses import replace

from impruver_gguf.architectures import decoder
from impruver_gguf.architectures.architecture import Config

QKV_BIASES = {name: sizes for name, sizes in decoder.ATTENTION_BIASES.items() if name != "blk.attn_output.bias"}


def find_qwen_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: windows, RoPE, activation."""
    if decoder.has_sliding_window(config):
        return "sliding windows"
    return decoder.find_unsupported_rope(config, ("default", "linear", "yarn")) or decoder.find_unsupported(config)


def find_qwen2_unsupported(config: Config) -> str | None:
    """Name that, or heads of another width than the model's width makes them: llama.cpp refuses to load these."""
    return decoder.find_other_head_dim(config) or find_qwen_unsupported(config)


def find_qwen3_unsupported(config: Config) -> str | None:
    """Name that, or biases: llama.cpp knows none of Qwen3's."""
    return "attention_bias" if config.get("attention_bias") else find_qwen_unsupported(config)


QWEN2 = decoder.make_architecture(
    name="qwen2",
    defaults=decoder.DEFAULTS
    | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768}
    | {"sliding_window": 4096, "max_window_layers": 28},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | QKV_BIASES | decoder.FEED_FORWARD,
    find_unsupported=find_qwen2_unsupported,
)
QWEN3 = replace(
    QWEN2,
    name="qwen3",
    defaults=QWEN2.defaults | {"head_dim": 128},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | decoder.HEAD_NORMS | decoder.FEED_FORWARD,
    find_unsupported=find_qwen3_unsupported,
)
