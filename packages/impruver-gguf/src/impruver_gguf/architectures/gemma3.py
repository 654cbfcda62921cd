"""Gemma 3, its text models: windows in five of six layers, norms that are held less one."""

from __future__ import annotations

from typing import Any

import numpy as np
from impruver_core.io.json_schema import COUNT, FLAG, NUMBER, POSITIVE, TEXT

from impruver_gguf.architectures import decoder
from impruver_gguf.architectures.architecture import Config
from impruver_gguf.architectures.rope import ROPE_KEYS, unlike
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.weights.lazy_tensor import Tensor

FULL, SLIDING = "full_attention", "sliding_attention"


NESTED = ROPE_KEYS | {FULL: ROPE_KEYS, SLIDING: ROPE_KEYS}


POST_NORMS = {"blk.post_attention_norm.weight": ("hidden_size",), "blk.post_ffw_norm.weight": ("hidden_size",)}


STEP = 6  # each sixth layer sees all, for llama.cpp


LARGEST = 62  # layers of the model whose attention llama.cpp scales by another width


def global_config(config: Config) -> Config:
    """The configuration with the RoPE of the layers that see all, where decoders have theirs."""
    ropes = config.get("rope_parameters") or {}
    if FULL in ropes or SLIDING in ropes:
        ropes = ropes.get(FULL) or {}
    ropes = ropes or config.get("rope_scaling") or {}
    return {name: value for name, value in config.items() if name != "rope_scaling"} | {"rope_parameters": ropes}


def local_rope(config: Config) -> Config:
    """RoPE's parameters in the layers with a window, where they are told apart."""
    return (config.get("rope_parameters") or {}).get(SLIDING) or {}


def check_gemma3(config: Config) -> str | None:
    known = unlike(global_config(config), ("default", "linear")) or decoder.unlike(
        config | {"hidden_act": config["hidden_activation"]}, "gelu_pytorch_tanh"
    )
    for name in ("attention_bias", "use_bidirectional_attention", "attn_logit_softcapping"):
        known = known or (name if config.get(name) else None)
    kind = local_rope(config).get("rope_type", "default")
    if kind != "default":
        known = known or f"rope_type {kind} of {SLIDING}"
    return known or _unlike_layers(config) or _unlike_scale(config)


def _unlike_layers(config: Config) -> str | None:
    count, step = config["num_hidden_layers"], config.get("sliding_window_pattern", STEP)
    kinds = config.get("layer_types") or [FULL if (layer + 1) % step == 0 else SLIDING for layer in range(count)]
    asked = [FULL if (layer + 1) % STEP == 0 else SLIDING for layer in range(count)]
    return None if kinds == asked else f"layer_types other than full attention in each {STEP}th"


def _unlike_scale(config: Config) -> str | None:
    width = config["head_dim"]
    if config["num_hidden_layers"] == LARGEST:
        width = config["hidden_size"] // config["num_attention_heads"]
    scalar = config["query_pre_attn_scalar"]
    return None if scalar == width else f"query_pre_attn_scalar {scalar}"


def gemma3_parameters(writer: Any, config: Config, file_type: int) -> None:
    theta = local_rope(config).get("rope_theta") or config["rope_local_base_freq"]
    decoder.parameters(writer, global_config(config), file_type, theta)
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def gemma3_changed(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Norms as what they multiply by."""
    if not name.endswith("norm.weight"):
        return tensor

    def rows(start: int, stop: int) -> np.ndarray:
        values = tensor.rows(start, stop)
        return values + values.dtype.type(1)

    return Tensor(tensor.shape, rows)


def gemma3_vocabulary_after(writer: Any, config: Config, vocabulary: Vocabulary) -> None:
    if vocabulary.sentencepiece:
        writer.add_add_space_prefix(False)


GEMMA3 = decoder.architecture(
    name="gemma3",
    keys=decoder.KEYS
    | {
        "rope_parameters": NESTED,
        "hidden_activation": TEXT,
        **dict.fromkeys(("query_pre_attn_scalar", "rope_local_base_freq"), POSITIVE),
        **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping"), NUMBER),
        **dict.fromkeys(("sliding_window", "sliding_window_pattern"), COUNT),
        "use_bidirectional_attention": FLAG,
    },
    defaults={
        "vocab_size": 262208,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | decoder.HEAD_NORMS | POST_NORMS | decoder.FEED_FORWARD,
    contradiction=lambda config: decoder.contradiction_of(global_config(config)),
    check=check_gemma3,
    parameters=gemma3_parameters,
    changed=gemma3_changed,
    vocabulary_after=gemma3_vocabulary_after,
)
