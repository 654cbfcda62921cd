"""Llama (SmolLM, SmolLM2, Llama 2 and 3.x), Mistral, which llama.cpp takes for one, and SmolLM3."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from impruver_core.io.json_schema import COUNT, INDEX, list_of

from impruver_gguf.architectures import decoder
from impruver_gguf.architectures.architecture import Config
from impruver_gguf.architectures.rope import divisors, llama3_factors, rope_of, unlike
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.weights.lazy_tensor import Tensor

MLP_BIASES = {
    "blk.ffn_gate.bias": ("intermediate_size",),
    "blk.ffn_up.bias": ("intermediate_size",),
    "blk.ffn_down.bias": ("hidden_size",),
}


SHAPES = decoder.EMBEDDINGS | decoder.ATTENTION | decoder.ATTENTION_BIASES | decoder.FEED_FORWARD | MLP_BIASES


BIASES = {"attention_bias": "blk.attn_", "mlp_bias": "blk.ffn_"}  # key → where it puts biases


ROPES = ("default", "linear", "yarn", "llama3")


NO_ROPE_STEP = 4  # llama.cpp's SmolLM3 turns nothing in each fourth layer


def llama_optional(config: Config) -> list[str]:
    """Biases that no key asks for."""
    starts = tuple(start for key, start in BIASES.items() if not config.get(key))
    return [name for name in SHAPES if name.endswith(".bias") and name.startswith(starts)]


def check_llama(config: Config) -> str | None:
    return unlike(config, ROPES) or decoder.unlike(config)


def check_smollm3(config: Config) -> str | None:
    step = config.get("no_rope_layer_interval", NO_ROPE_STEP)
    count = config["num_hidden_layers"]
    turned = config.get("no_rope_layers") or [int((layer + 1) % step != 0) for layer in range(count)]
    if turned[:count] != [int((layer + 1) % NO_ROPE_STEP != 0) for layer in range(count)]:
        return f"no_rope_layers other than each {NO_ROPE_STEP}th"
    biased = next((name for name in BIASES if config.get(name)), None)  # for which llama.cpp has no place
    return biased or ("sliding windows" if decoder.slides(config) else check_llama(config))


def smollm3_parameters(writer: Any, config: Config, file_type: int) -> None:
    decoder.parameters(writer, config, file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(decoder.head_of(config))


def llama_parameters(writer: Any, config: Config, file_type: int) -> None:
    smollm3_parameters(writer, config | {"head_dim": decoder.head_of(config)}, file_type)


def llama_extra(config: Config) -> dict[str, Tensor]:
    """Llama 3.x: by what RoPE's frequencies are divided, as a tensor."""
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return {}
    return {"rope_freqs.weight": divisors(llama3_factors(rope, decoder.head_of(config)))}


def llama_changed(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Queries and keys with the halves of each head interleaved: llama.cpp's RoPE turns neighbours."""
    if not name.endswith((".q_proj.weight", ".q_proj.bias", ".k_proj.weight", ".k_proj.bias")):
        return tensor
    return Tensor(tensor.shape, partial(_interleaved, tensor, decoder.head_of(config)))


def _interleaved(tensor: Tensor, head: int, start: int, stop: int) -> np.ndarray:
    first, last = start // head, -(-stop // head)
    values = tensor.rows(first * head, last * head)
    turned = values.reshape(last - first, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return turned[start - first * head : stop - first * head]


def llama_vocabulary_before(writer: Any, config: Config, vocabulary: Vocabulary) -> None:
    if vocabulary.config.get("add_prefix_space") is not None:
        writer.add_add_space_prefix(vocabulary.config["add_prefix_space"])


def llama_vocabulary_after(writer: Any, config: Config, vocabulary: Vocabulary) -> None:
    """llama.cpp's rules by size: CodeLlama's end of filling in, no BOS for Granite's, whose size SmolLM's has."""
    if config["vocab_size"] == 32016:
        writer.add_eot_token_id(32010)
    if config["vocab_size"] == 49152:
        writer.add_add_bos_token(False)


DEFAULTS = decoder.DEFAULTS | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048}


LLAMA = decoder.architecture(
    name="llama",
    defaults=DEFAULTS,
    shapes=SHAPES,
    optional=llama_optional,
    check=check_llama,
    parameters=llama_parameters,
    extra=llama_extra,
    changed=llama_changed,
    vocabulary_before=llama_vocabulary_before,
    vocabulary_after=llama_vocabulary_after,
)


MISTRAL = replace(
    LLAMA,
    defaults=DEFAULTS | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
)


SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    keys=decoder.KEYS | {"no_rope_layers": list_of(INDEX), "no_rope_layer_interval": COUNT},
    defaults=DEFAULTS
    | {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16}
    | {"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True, "rope_theta": 2e6},
    check=check_smollm3,
    parameters=smollm3_parameters,
)
