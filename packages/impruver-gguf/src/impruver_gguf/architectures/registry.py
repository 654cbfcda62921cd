"""The architectures that are converted here, and the tensors of a model by their GGUF names.

What is written follows llama.cpp's converter, field by field and in its order: for a model without an adapter the file
is the same, byte for byte.
"""

import re
from collections.abc import Collection
from pathlib import Path

from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import check_keys

from impruver_gguf.architectures.base.architecture import Architecture, Config, do_nothing
from impruver_gguf.architectures.dense.cohere import COHERE, COHERE2
from impruver_gguf.architectures.dense.exaone4 import EXAONE4
from impruver_gguf.architectures.dense.gemma2 import GEMMA2
from impruver_gguf.architectures.dense.gemma3 import GEMMA3
from impruver_gguf.architectures.dense.glm4 import GLM4
from impruver_gguf.architectures.dense.gpt2 import GPT2
from impruver_gguf.architectures.dense.gpt_neox import GPT_NEOX
from impruver_gguf.architectures.dense.hunyuan import HUNYUAN
from impruver_gguf.architectures.dense.llama import LLAMA, MISTRAL, MIXTRAL, SMOLLM3
from impruver_gguf.architectures.dense.mistral3 import MINISTRAL3, MINISTRAL3_TEXT_MODEL, MISTRAL3
from impruver_gguf.architectures.dense.olmo2 import OLMO2, OLMO3
from impruver_gguf.architectures.dense.phi3 import PHI3
from impruver_gguf.architectures.dense.qwen import QWEN2, QWEN3, QWEN3_MOE, QWEN3_VL, QWEN3_VL_MOE
from impruver_gguf.architectures.hybrids.falcon_h1 import FALCON_H1
from impruver_gguf.architectures.hybrids.granite import GRANITE, GRANITE_HYBRID, GRANITE_MOE
from impruver_gguf.architectures.hybrids.lfm2 import LFM2, LFM2_MOE
from impruver_gguf.architectures.hybrids.qwen3_next import QWEN3_NEXT, QWEN35, QWEN35_MOE
from impruver_gguf.architectures.mixtures.deepseek import DEEPSEEK2, DEEPSEEK3
from impruver_gguf.architectures.mixtures.gemma4 import GEMMA4
from impruver_gguf.architectures.mixtures.glm4_moe import GLM4_MOE
from impruver_gguf.architectures.mixtures.gpt_oss import GPT_OSS
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, reshape_tensor

# The class that config.json's `architectures` names first → how it is converted.
ARCHITECTURES = {
    "LlamaForCausalLM": LLAMA,
    "LLaMAForCausalLM": LLAMA,
    "MistralForCausalLM": MISTRAL,
    "MixtralForCausalLM": MIXTRAL,
    "SmolLM3ForCausalLM": SMOLLM3,
    "Qwen2ForCausalLM": QWEN2,
    "Qwen3ForCausalLM": QWEN3,
    "Qwen3MoeForCausalLM": QWEN3_MOE,
    "Qwen3VLForConditionalGeneration": QWEN3_VL,
    "Qwen3VLMoeForConditionalGeneration": QWEN3_VL_MOE,
    "Qwen3NextForCausalLM": QWEN3_NEXT,
    "Qwen3_5ForCausalLM": QWEN35,
    "Qwen3_5ForConditionalGeneration": QWEN35,
    "Qwen3_5MoeForCausalLM": QWEN35_MOE,
    "Qwen3_5MoeForConditionalGeneration": QWEN35_MOE,
    "Phi3ForCausalLM": PHI3,
    "Mistral3ForConditionalGeneration": MISTRAL3,
    "Ministral3ForCausalLM": MINISTRAL3,
    "Gemma2ForCausalLM": GEMMA2,
    "Gemma3ForCausalLM": GEMMA3,
    "Gemma3ForConditionalGeneration": GEMMA3,
    "Gemma4ForCausalLM": GEMMA4,
    "Gemma4ForConditionalGeneration": GEMMA4,
    "GPT2LMHeadModel": GPT2,
    "GptOssForCausalLM": GPT_OSS,
    "GPTNeoXForCausalLM": GPT_NEOX,
    "Olmo2ForCausalLM": OLMO2,
    "Olmo3ForCausalLM": OLMO3,
    "CohereForCausalLM": COHERE,
    "Cohere2ForCausalLM": COHERE2,
    "DeepseekV2ForCausalLM": DEEPSEEK2,
    "DeepseekV3ForCausalLM": DEEPSEEK3,
    "Glm4ForCausalLM": GLM4,
    "Glm4MoeForCausalLM": GLM4_MOE,
    "Exaone4ForCausalLM": EXAONE4,
    "HunYuanDenseV1ForCausalLM": HUNYUAN,
    "GraniteForCausalLM": GRANITE,
    "GraniteMoeForCausalLM": GRANITE_MOE,
    "GraniteMoeSharedForCausalLM": GRANITE_MOE,
    "GraniteMoeHybridForCausalLM": GRANITE_HYBRID,
    "Lfm2ForCausalLM": LFM2,
    "Lfm2MoeForCausalLM": LFM2_MOE,
    "FalconH1ForCausalLM": FALCON_H1,
}
# A multimodal class whose text models are of several families, and text_config's model_type → how it is converted.
TEXT_MODELS = {("Mistral3ForConditionalGeneration", "ministral3"): MINISTRAL3_TEXT_MODEL}
BUFFERS = (".attention.masked_bias", ".attention.bias", ".attn.masked_bias", ".attn.bias", ".rotary_emb.inv_freq")


def find_architecture(class_name: str, config: Config) -> Architecture | None:
    """Find how a model is converted by its class and config.json; None where it is not converted here."""
    kind = (config.get("text_config") or {}).get("model_type")
    return TEXT_MODELS.get((class_name, kind)) or ARCHITECTURES.get(class_name)


def complete_config(architecture: Architecture, config: Config, path: Path) -> Config:
    """Fill in a config.json as transformers does; ImpruverError where it can't be right."""
    check_keys(config, architecture.keys, path)
    config = architecture.defaults | {
        name: value for name, value in config.items() if value is not None or name in architecture.nullable
    }
    contradiction = architecture.find_contradiction(config)
    if contradiction:
        raise ImpruverError(f"{path}: {contradiction}: give the config.json that was saved with the weights")
    return config


def convert_tensors(architecture: Architecture, tensors: Tensors, config: Config, path: Path) -> dict[str, LazyTensor]:
    """Map transformers' tensors to those of the GGUF, by name and in llama.cpp's order.

    ImpruverError where they are not what the configuration in `path` asks for.
    """
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture.name)
    count = min(config[architecture.blocks], len(tensors))  # a mistyped number of layers makes no endless table
    name_map = get_tensor_name_map(arch, count)
    sizes, converted = architecture.get_sizes(config), {}
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(BUFFERS)}
    for name, tensor in architecture.prepare_tensors(tensors, config).items():
        # It may be GGUF's already.
        gguf_name = name_map.get_name(name, try_suffixes=(".weight", ".bias", ".scale")) or name
        kind, block = _split_block_number(gguf_name)
        shape = architecture.shapes.get(kind) if block is None or block < config[architecture.blocks] else None
        if "output.weight" not in architecture.shapes and name == f"{architecture.tied.output}.weight":
            raise ImpruverError(
                f"{path}: {name} is not the input embeddings, and llama.cpp's {architecture.name} has one matrix "
                "for both: train neither of them by itself"
            )
        if block is not None:
            absent = {*architecture.get_absent(config, block)} - {*architecture.get_unused(config, block)}
            shape = None if kind in absent else shape
        if shape is None:
            raise ImpruverError(
                f"{path}: {name} is no tensor of a {architecture.name} model of {config[architecture.blocks]} layers "
                f"({architecture.blocks}); give the config.json that was saved with the weights"
            )
        here = sizes if block is None else sizes | architecture.get_layer_sizes(config, block)
        expected = tuple(here[size] for size in shape)
        if tensor.shape != expected:
            raise ImpruverError(
                f"{path}: {name} is {list(tensor.shape)}, and should be {list(expected)} ({', '.join(shape)}): the "
                "configuration and the weights (or the adapter's base) are of different models, or rows of new tokens "
                "were not saved"
            )
        tensor = architecture.modify_tensors(name, tensor, config)
        if kind in architecture.reshaped:
            tensor = reshape_tensor(tensor, tuple(sizes[size] for size in architecture.reshaped[kind]))
        converted[gguf_name] = tensor
    _check_complete(architecture, converted, config, path)
    return architecture.generate_extra_tensors(config) | converted


def make_expected_tensors(architecture: Architecture, config: Config) -> dict[str, LazyTensor]:
    """Make the tensors that a model of this configuration has, by GGUF name, of shapes alone."""
    sizes, tensors = architecture.get_sizes(config), architecture.generate_extra_tensors(config)
    for name in _get_required(architecture, config):
        shape = architecture.reshaped.get(name) or architecture.shapes[name]
        if not name.startswith("blk."):
            tensors[name] = LazyTensor(tuple(sizes[size] for size in shape), do_nothing)
            continue
        encoding = architecture.get_encoding(name, config)
        for layer in range(config[architecture.blocks]):
            if name in architecture.get_absent(config, layer):
                continue
            own = sizes | architecture.get_layer_sizes(config, layer)
            values = tuple(own[size] for size in (shape[::-1] if architecture.conv1d else shape))
            tensors[name.replace("blk.", f"blk.{layer}.", 1)] = LazyTensor(values, do_nothing, encoding=encoding)
    return tensors


def _get_required(architecture: Architecture, config: Config) -> set[str]:
    tied = {"output.weight"} if config["tie_word_embeddings"] else set()
    return {*architecture.shapes} - {*architecture.get_optional(config)} - tied


def _split_block_number(name: str) -> tuple[str, int | None]:
    """A tensor's GGUF name without the number of its layer, and that number."""
    match = re.match(r"blk\.(\d+)\.", name)
    return (f"blk.{name[match.end() :]}", int(match[1])) if match else (name, None)


def _check_complete(architecture: Architecture, names: Collection[str], config: Config, path: Path) -> None:
    """Every layer must have what any of its kind has, and the model what its architecture requires."""
    required = _get_required(architecture, config) | {_split_block_number(name)[0] for name in names}
    for block in range(config[architecture.blocks]):
        for name in sorted(required - {*architecture.get_absent(config, block)}):
            if name.replace("blk.", f"blk.{block}.", 1) in names:
                continue
            where = f"layer {block} of {config[architecture.blocks]}" if name.startswith("blk.") else "the model"
            raise ImpruverError(
                f"{path}: {where} has no {name.removeprefix('blk.')}: the weights are not whole, or the configuration "
                "is of another model"
            )
