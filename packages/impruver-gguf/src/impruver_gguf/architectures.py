"""The architectures that are converted here: a table row each, with its named functions.

What stands in the GGUF follows llama.cpp's converter, field by field and in its order: for a model without an adapter
the file is the same, byte for byte.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from impruver_core.errors import ImpruverError

from impruver_gguf.tensors import Tensor

Config = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """`name` is llama.cpp's; `defaults` are what transformers takes for keys that config.json leaves out."""

    name: str
    blocks: str  # config keys: number of layers, longest context
    context: str
    tied: tuple[str, str]  # modules of input and output embeddings, as transformers names them
    defaults: Config
    check: Callable[[Config], str | None]  # what llama.cpp would silently compute otherwise
    parameters: Callable[[Any, Config], None]  # writes the hyperparameters
    extra: Callable[[Config], dict[str, Tensor]]  # tensors that no file holds, by GGUF name
    changed: Callable[[str, Tensor, Config], Tensor]  # a tensor as GGUF wants it, by its name in the file
    conv1d: Callable[[str], bool]  # modules with transposed weights
    vocabulary_before: Callable[[Any, Config, Config], None]  # writer, config, tokenizer_config
    vocabulary_after: Callable[[Any, Config], None]


def with_defaults(architecture: Architecture, config: Config) -> Config:
    """The configuration as transformers completes it."""
    return architecture.defaults | {name: value for name, value in config.items() if value is not None}


def converted(architecture: Architecture, tensors: dict[str, Tensor], config: Config) -> dict[str, Tensor]:
    """GGUF name → tensor, in llama.cpp's order."""
    import gguf

    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    names = gguf.get_tensor_name_map(kind, int(config[architecture.blocks]))
    result = dict(architecture.extra(config))
    for name, tensor in tensors.items():
        if name.endswith(LEFT_OUT):
            continue
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if named is None:
            raise ImpruverError(
                f"{name}: no tensor of a {architecture.name} model of {config[architecture.blocks]} layers"
            )
        result[named] = architecture.changed(name, tensor, config)
    return result


def is_float32(name: str, tensor: Tensor) -> bool:
    """Whether llama.cpp keeps a tensor in 32 bits: vectors, norms, GPT-2's positions."""
    return len(tensor.shape) <= 1 or name.endswith("_norm.weight") or name in ("position_embd.weight",)


LEFT_OUT = (".attention.masked_bias", ".attention.bias", ".attn.masked_bias", ".attn.bias", ".rotary_emb.inv_freq")


# Llama: SmolLM, SmolLM2, Llama 2 (with a byte-level vocabulary), Llama 3.x


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


# GPT-2: OpenAI's, ruGPT-3


def check_gpt2(config: Config) -> str | None:
    if config["activation_function"] not in ("gelu_new", "gelu_pytorch_tanh"):
        return f"activation_function {config['activation_function']}"
    return "scale_attn_by_inverse_layer_idx" if config.get("scale_attn_by_inverse_layer_idx") else None


def gpt2_parameters(writer: Any, config: Config) -> None:
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config.get("n_ctx") or config["n_positions"])  # transformers 5 writes no n_ctx
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(config.get("n_inner") or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(1)  # mostly f16


CONV1D = (".c_attn", ".c_proj", ".c_fc")


def gpt2_changed(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Conv1D's weights the way round that every other layer has them."""
    if not name.endswith(tuple(f"{module}.weight" for module in CONV1D)):
        return tensor
    return Tensor(tensor.shape[::-1], lambda: tensor.load().T)


def _nothing(*_: Any) -> None:
    """Where an architecture has nothing of its own."""


def _no_tensors(config: Config) -> dict[str, Tensor]:
    return {}


def _ends_with(ends: tuple[str, ...], module: str) -> bool:
    return bool(ends) and module.endswith(ends)


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
    conv1d=partial(_ends_with, ()),
    vocabulary_before=llama_vocabulary_before,
    vocabulary_after=llama_vocabulary_after,
)
GPT2 = Architecture(
    name="gpt2",
    blocks="n_layer",
    context="n_positions",
    tied=("transformer.wte", "lm_head"),
    defaults={
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "layer_norm_epsilon": 1e-5,
        "activation_function": "gelu_new",
        "tie_word_embeddings": True,
    },
    check=check_gpt2,
    parameters=gpt2_parameters,
    extra=_no_tensors,
    changed=gpt2_changed,
    conv1d=partial(_ends_with, CONV1D),
    vocabulary_before=_nothing,
    vocabulary_after=_nothing,
)

# What config.json's `architectures` names first → its row.
ARCHITECTURES = {"LlamaForCausalLM": LLAMA, "LLaMAForCausalLM": LLAMA, "GPT2LMHeadModel": GPT2}
