"""The architectures that are converted here: a table row each, with its named functions.

What stands in the GGUF follows llama.cpp's converter, field by field and in its order: for a model without an adapter
the file is the same, byte for byte.
"""

from __future__ import annotations

from impruver_core.errors import ImpruverError

from impruver_gguf.architectures.gpt2 import GPT2
from impruver_gguf.architectures.llama import LLAMA
from impruver_gguf.architectures.row import Architecture, Config
from impruver_gguf.tensors import Tensor

# What config.json's `architectures` names first → its row.
ARCHITECTURES = {"LlamaForCausalLM": LLAMA, "LLaMAForCausalLM": LLAMA, "GPT2LMHeadModel": GPT2}
LEFT_OUT = (".attention.masked_bias", ".attention.bias", ".attn.masked_bias", ".attn.bias", ".rotary_emb.inv_freq")
IN_FLOAT32 = ("position_embd.weight",)


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
    return len(tensor.shape) <= 1 or name.endswith("_norm.weight") or name in IN_FLOAT32
