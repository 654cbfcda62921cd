"""Llama: SmolLM, SmolLM2, Llama 3.x, and whatever else is a LlamaForCausalLM with a byte-level vocabulary."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from impruver_gguf.architectures.row import Architecture, Config, no_conv1d
from impruver_gguf.tensors import Tensor


def check_llama(config: Config) -> str | None:
    rope = llama_rope(config).get("rope_type", "default")
    if rope not in ("default", "linear", "yarn", "llama3"):
        return f"rope_type {rope}"
    return f"hidden_act {config['hidden_act']}" if config["hidden_act"] != "silu" else None


def llama_rope(config: Config) -> Config:
    """RoPE's parameters, under the names of transformers 5 wherever they stand."""
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    return rope


def llama_head(config: Config) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def llama_parameters(writer: Any, config: Config) -> None:
    rope = llama_rope(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config.get("num_key_value_heads", config["num_attention_heads"]))
    _scaled_rope(writer, rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(llama_head(config))
    writer.add_value_length(llama_head(config))
    writer.add_file_type(1)  # mostly f16
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(llama_head(config))


def _scaled_rope(writer: Any, rope: Config) -> None:
    import gguf

    kind = {"linear": gguf.RopeScalingType.LINEAR, "yarn": gguf.RopeScalingType.YARN}.get(rope["rope_type"])
    if kind is None or rope.get("factor") is None:
        return
    writer.add_rope_scaling_type(kind)
    writer.add_rope_scaling_factor(rope["factor"])
    if kind is gguf.RopeScalingType.YARN:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        for name, add in (
            ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(name) is not None:
                add(rope[name])


def llama_extra(config: Config) -> dict[str, Tensor]:
    """Llama 3.x: by what RoPE's frequencies are divided, as a tensor."""
    rope = llama_rope(config)
    if rope["rope_type"] != "llama3":
        return {}
    factors = np.array(list(_llama3_factors(rope, llama_head(config))), np.float32)
    return {"rope_freqs.weight": Tensor(factors.shape, lambda: factors)}


def _llama3_factors(rope: Config, width: int) -> Iterator[np.float32]:
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
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


def llama_changed(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Queries and keys with the halves of each head interleaved: llama.cpp's RoPE turns neighbours."""
    heads = config["num_attention_heads"]
    if name.endswith((".k_proj.weight", ".k_proj.bias")):
        heads = config.get("num_key_value_heads", heads)
    elif not name.endswith((".q_proj.weight", ".q_proj.bias")):
        return tensor
    return replace(tensor, load=lambda: _interleaved(tensor.load(), heads))


def _interleaved(values: np.ndarray, heads: int) -> np.ndarray:
    return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)


def llama_vocabulary_before(writer: Any, config: Config, tokenizer_config: Config) -> None:
    if tokenizer_config.get("add_prefix_space") is not None:
        writer.add_add_space_prefix(tokenizer_config["add_prefix_space"])


def llama_vocabulary_after(writer: Any, config: Config) -> None:
    if config["vocab_size"] == 49152:  # llama.cpp's rule for Granite's vocabulary, which SmolLM's has the size of
        writer.add_add_bos_token(False)


LLAMA = Architecture(
    name="llama",
    blocks="num_hidden_layers",
    context="max_position_embeddings",
    tied=("model.embed_tokens", "lm_head"),
    defaults={
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-6,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
    },
    check=check_llama,
    parameters=llama_parameters,
    extra=llama_extra,
    changed=llama_changed,
    conv1d=no_conv1d,
    vocabulary_before=llama_vocabulary_before,
    vocabulary_after=llama_vocabulary_after,
)
