"""The architectures that are converted here: a table row each, with its named functions.

What stands in the GGUF follows llama.cpp's converter, field by field and in its order: for a model without an adapter
the file is the same, byte for byte.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import check_keys

from impruver_gguf.architectures.architecture import Architecture, Config, nothing
from impruver_gguf.architectures.gemma3 import GEMMA3
from impruver_gguf.architectures.gpt2 import GPT2
from impruver_gguf.architectures.llama import LLAMA, MISTRAL, SMOLLM3
from impruver_gguf.architectures.phi3 import PHI3
from impruver_gguf.architectures.qwen import QWEN2, QWEN3
from impruver_gguf.weights.lazy_tensor import Tensor

# What config.json's `architectures` names first → its row.
ARCHITECTURES = {
    "LlamaForCausalLM": LLAMA,
    "LLaMAForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "SmolLM3ForCausalLM": SMOLLM3,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Phi3ForCausalLM": PHI3,
    "Gemma3ForCausalLM": GEMMA3,
    "GPT2LMHeadModel": GPT2,
}


LEFT_OUT = (".attention.masked_bias", ".attention.bias", ".attn.masked_bias", ".attn.bias", ".rotary_emb.inv_freq")


def with_defaults(architecture: Architecture, config: Config, path: Path) -> Config:
    """The configuration in the file `path` as transformers completes it; ImpruverError where it can't be right."""
    check_keys(config, architecture.keys, path)
    config = architecture.defaults | {name: value for name, value in config.items() if value is not None}
    wrong = architecture.contradiction(config)
    if wrong:
        raise ImpruverError(f"{path}: {wrong}: give the config.json that was saved with the weights")
    return config


def converted(architecture: Architecture, tensors: dict[str, Tensor], config: Config, path: Path) -> dict[str, Tensor]:
    """GGUF name → tensor, in llama.cpp's order; ImpruverError where they are not what the config in `path` asks for."""
    import gguf

    kind = next(key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture.name)
    count = min(config[architecture.blocks], len(tensors))  # a mistyped number of layers makes no endless table
    names = gguf.get_tensor_name_map(kind, count)
    sizes, result = architecture.sizes(config), {}
    for name, tensor in tensors.items():
        if name.endswith(LEFT_OUT):
            continue
        named = names.get_name(name, try_suffixes=(".weight", ".bias"))
        expected = architecture.shapes.get(without_block(named or ""))
        if expected is None:
            raise ImpruverError(
                f"{path}: {name} is no tensor of a {architecture.name} model of {config[architecture.blocks]} layers "
                f"({architecture.blocks}); give the config.json that was saved with the weights"
            )
        _check_shape(name, tensor, expected, sizes, path)
        result[named] = architecture.changed(name, tensor, config)
    _check_whole(architecture, result, config, path)
    return architecture.extra(config) | result


def expected(architecture: Architecture, config: Config) -> dict[str, Tensor]:
    """GGUF name → tensor as a model of this configuration has them, of shapes alone."""
    sizes, result = architecture.sizes(config), architecture.extra(config)
    for name in architecture.shapes.keys() - _optional(architecture, config):
        shape = tuple(sizes[size] for size in architecture.shapes[name])
        if not name.startswith("blk."):
            result[name] = Tensor(shape, nothing)
            continue
        shape = shape[::-1] if architecture.conv1d else shape
        for layer in range(config[architecture.blocks]):
            result[name.replace("blk.", f"blk.{layer}.", 1)] = Tensor(shape, nothing)
    return result


def _optional(architecture: Architecture, config: Config) -> set[str]:
    return {*architecture.optional(config), *(["output.weight"] if config["tie_word_embeddings"] else [])}


def without_block(name: str) -> str:
    """A tensor's name in GGUF without the number of its layer."""
    return re.sub(r"^blk\.\d+\.", "blk.", name)


def _check_shape(name: str, tensor: Tensor, expected: tuple[str, ...], sizes: dict[str, int], path: Path) -> None:
    asked = tuple(sizes[size] for size in expected)
    if tensor.shape != asked:
        raise ImpruverError(
            f"{path}: {name} is {list(tensor.shape)}, and should be {list(asked)} ({', '.join(expected)}): the "
            "configuration and the weights (or the adapter's base) are of different models, or rows of new tokens "
            "were not saved"
        )


def _check_whole(architecture: Architecture, names: Collection[str], config: Config, path: Path) -> None:
    """Every layer has what one of them has, and all that the architecture must have."""
    needed = {without_block(name) for name in names} | (architecture.shapes.keys() - _optional(architecture, config))
    for block in range(config[architecture.blocks]):
        for name in sorted(needed):
            if name.replace("blk.", f"blk.{block}.", 1) in names:
                continue
            where = f"layer {block} of {config[architecture.blocks]}" if name.startswith("blk.") else "the model"
            raise ImpruverError(
                f"{path}: {where} has no {name.removeprefix('blk.')}: the weights are not whole, or the configuration "
                "is of another model"
            )


def is_float32(name: str, tensor: Tensor) -> bool:
    """Whether llama.cpp keeps a tensor in 32 bits: vectors, norms, GPT-2's positions."""
    return len(tensor.shape) <= 1 or name.endswith("_norm.weight") or name == "position_embd.weight"
