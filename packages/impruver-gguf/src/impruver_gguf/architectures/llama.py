"""Llama: SmolLM, SmolLM2, Llama 3.x, and whatever else is a LlamaForCausalLM with a byte-level vocabulary."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from impruver_gguf.architectures.rope import ROPE_KEYS, llama3_factors, rope_of, write_scaling
from impruver_gguf.architectures.row import Architecture, Config, no_conv1d
from impruver_gguf.jsonfile import COUNT, FLAG, POSITIVE, TEXT
from impruver_gguf.tensors import Tensor

KEYS = {
    **dict.fromkeys(("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"), COUNT),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"), COUNT),
    **dict.fromkeys(("rms_norm_eps", "rope_theta"), POSITIVE),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias"), FLAG),
    "hidden_act": TEXT,
    "rope_parameters": ROPE_KEYS,
    "rope_scaling": ROPE_KEYS,
}
QUERIES, KEY_VALUES = "num_attention_heads x head_dim", "num_key_value_heads x head_dim"
SHAPES = {
    "token_embd.weight": ("vocab_size", "hidden_size"),
    "output.weight": ("vocab_size", "hidden_size"),
    "output_norm.weight": ("hidden_size",),
    "blk.attn_norm.weight": ("hidden_size",),
    "blk.attn_q.weight": (QUERIES, "hidden_size"),
    "blk.attn_q.bias": (QUERIES,),
    "blk.attn_k.weight": (KEY_VALUES, "hidden_size"),
    "blk.attn_k.bias": (KEY_VALUES,),
    "blk.attn_v.weight": (KEY_VALUES, "hidden_size"),
    "blk.attn_v.bias": (KEY_VALUES,),
    "blk.attn_output.weight": ("hidden_size", QUERIES),
    "blk.attn_output.bias": ("hidden_size",),
    "blk.ffn_norm.weight": ("hidden_size",),
    "blk.ffn_gate.weight": ("intermediate_size", "hidden_size"),
    "blk.ffn_gate.bias": ("intermediate_size",),
    "blk.ffn_up.weight": ("intermediate_size", "hidden_size"),
    "blk.ffn_up.bias": ("intermediate_size",),
    "blk.ffn_down.weight": ("hidden_size", "intermediate_size"),
    "blk.ffn_down.bias": ("hidden_size",),
}
BIASES = {"attention_bias": "blk.attn_", "mlp_bias": "blk.ffn_"}  # key → where it puts biases


def llama_contradiction(config: Config) -> str | None:
    heads, groups = config["num_attention_heads"], llama_groups(config)
    if heads % groups:
        return f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}"
    if not config.get("head_dim") and config["hidden_size"] % heads:
        return f"hidden_size {config['hidden_size']} is no multiple of num_attention_heads {heads}"
    if rope_of(config)["rope_type"] == "yarn" and "original_max_position_embeddings" not in rope_of(config):
        return "rope_type yarn comes without original_max_position_embeddings"
    return f"head_dim {llama_head(config)} is odd, and RoPE turns pairs" if llama_head(config) % 2 else None


def llama_sizes(config: Config) -> dict[str, int]:
    head = llama_head(config)
    sizes = {name: config[name] for name in ("vocab_size", "hidden_size", "intermediate_size")}
    return sizes | {QUERIES: config["num_attention_heads"] * head, KEY_VALUES: llama_groups(config) * head}


def llama_optional(config: Config) -> list[str]:
    """Biases that no key asks for."""
    starts = tuple(start for key, start in BIASES.items() if not config.get(key))
    return [name for name in SHAPES if name.endswith(".bias") and name.startswith(starts)]


def check_llama(config: Config) -> str | None:
    rope = rope_of(config).get("rope_type", "default")
    if rope not in ("default", "linear", "yarn", "llama3"):
        return f"rope_type {rope}"
    return f"hidden_act {config['hidden_act']}" if config["hidden_act"] != "silu" else None


def llama_head(config: Config) -> int:
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def llama_groups(config: Config) -> int:
    """Heads of keys and values, which several queries share."""
    return config.get("num_key_value_heads", config["num_attention_heads"])


def llama_parameters(writer: Any, config: Config, file_type: int) -> None:
    rope = rope_of(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(llama_groups(config))
    write_scaling(writer, rope)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(llama_head(config))
    writer.add_value_length(llama_head(config))
    writer.add_file_type(file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(llama_head(config))


def llama_extra(config: Config) -> dict[str, Tensor]:
    """Llama 3.x: by what RoPE's frequencies are divided, as a tensor."""
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return {}
    factors = np.array(list(llama3_factors(rope, llama_head(config))), np.float32)
    return {"rope_freqs.weight": Tensor(factors.shape, lambda start, stop: factors[start:stop])}


def llama_changed(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Queries and keys with the halves of each head interleaved: llama.cpp's RoPE turns neighbours."""
    if not name.endswith((".q_proj.weight", ".q_proj.bias", ".k_proj.weight", ".k_proj.bias")):
        return tensor
    return Tensor(tensor.shape, partial(_interleaved, tensor, llama_head(config)))


def _interleaved(tensor: Tensor, head: int, start: int, stop: int) -> np.ndarray:
    first, last = start // head, -(-stop // head)
    values = tensor.rows(first * head, last * head)
    turned = values.reshape(last - first, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return turned[start - first * head : stop - first * head]


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
    keys=KEYS,
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
    contradiction=llama_contradiction,
    sizes=llama_sizes,
    shapes=SHAPES,
    optional=llama_optional,
    check=check_llama,
    parameters=llama_parameters,
    extra=llama_extra,
    changed=llama_changed,
    conv1d=no_conv1d,
    vocabulary_before=llama_vocabulary_before,
    vocabulary_after=llama_vocabulary_after,
)
