"""GPT-2: OpenAI's, and ruGPT-3."""

from __future__ import annotations

from typing import Any

from impruver_gguf.architectures.row import Architecture, Config, no_tensors, nothing
from impruver_gguf.tensors import Tensor

CONV1D = (".c_attn", ".c_proj", ".c_fc")


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


def gpt2_changed(name: str, tensor: Tensor, config: Config) -> Tensor:
    """Conv1D's weights the way round that every other layer has them."""
    if not name.endswith(tuple(f"{module}.weight" for module in CONV1D)):
        return tensor
    return Tensor(tensor.shape[::-1], lambda: tensor.load().T)


def gpt2_conv1d(module: str) -> bool:
    return module.endswith(CONV1D)


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
    extra=no_tensors,
    changed=gpt2_changed,
    conv1d=gpt2_conv1d,
    vocabulary_before=nothing,
    vocabulary_after=nothing,
)
