"""Granite 3 and 4: dense, with experts, and hybrids of Mamba 2 and attention."""

import re
from dataclasses import replace

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, INDEX, POSITIVE, TEXT, list_of

from impruver_gguf.architectures.base import decoder, experts, mamba2
from impruver_gguf.architectures.base.architecture import Architecture, Config
from impruver_gguf.architectures.dense import llama
from impruver_gguf.vocab.vocabulary import write_vocab
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, slice_matrices

MULTIPLIERS = ("attention_multiplier", "embedding_multiplier", "residual_multiplier", "logits_scaling")
ATTENTION_TYPES = ("attention", "full_attention")  # on the hub, and in transformers 5
LAYER_TYPES = (*ATTENTION_TYPES, "mamba", MAMBA := "linear_attention")
LAYER = re.compile(r"((?:.*\.layers\.\d+\.)?)(.*)")
MAMBA_EXPAND = 2  # Mamba's width for a model's, in llama.cpp
CONTEXT_WITHOUT_POSITIONS = 1 << 20  # what llama.cpp's converter writes where no layer has positions
DEFAULTS = llama.DEFAULTS | dict.fromkeys(MULTIPLIERS, 1.0)
KEYS = decoder.KEYS | dict.fromkeys(MULTIPLIERS, POSITIVE)
EXPERT_KEYS = experts.KEYS | {"shared_intermediate_size": INDEX}
ATTENTION = decoder.ATTENTION | decoder.ATTENTION_BIASES
SHARED_EXPERT = {
    "blk.ffn_gate_shexp.weight": ("shared_intermediate_size", "hidden_size"),
    "blk.ffn_up_shexp.weight": ("shared_intermediate_size", "hidden_size"),
    "blk.ffn_down_shexp.weight": ("hidden_size", "shared_intermediate_size"),
}
# How a tensor's name ends, on the hub or in transformers 5 → the names that gguf's table has for its parts.
EXPERT_PARTS = {
    "block_sparse_moe.input_linear.weight": ("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight"),
    "block_sparse_moe.experts.gate_up_proj": ("mlp.experts.gate_proj.weight", "mlp.experts.up_proj.weight"),
    "block_sparse_moe.experts.down_proj": ("mlp.experts.down_proj.weight",),
    "block_sparse_moe.router.weight": ("block_sparse_moe.router.layer.weight",),
    "shared_mlp.input_linear.weight": ("mlp.shared_expert.gate_proj.weight", "mlp.shared_expert.up_proj.weight"),
}
DENSE_PARTS = {
    "shared_mlp.input_linear.weight": ("mlp.gate_proj.weight", "mlp.up_proj.weight"),
    "shared_mlp.output_linear.weight": ("mlp.down_proj.weight",),
}


def find_granite_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: heads of another width, RoPE, activation."""
    if decoder.get_head_dim(config) * config["num_attention_heads"] != config["hidden_size"]:
        return f"head_dim {config['head_dim']}"
    return llama.find_llama_unsupported(config)


def set_granite_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, Granite's multipliers, and the width of a shared expert where there is one."""
    llama.set_smollm3_gguf_parameters(writer, config | {"head_dim": None}, file_type)
    writer.add_attention_scale(config["attention_multiplier"])
    writer.add_embedding_scale(config["embedding_multiplier"])
    writer.add_residual_scale(config["residual_multiplier"])
    writer.add_logit_scale(config["logits_scaling"])
    if config.get("shared_intermediate_size"):
        writer.add_expert_shared_feed_forward_length(config["shared_intermediate_size"])


def find_moe_contradiction(config: Config) -> str | None:
    """Name what in a configuration no such mixture of experts can have."""
    return experts.find_expert_contradiction(config) or decoder.find_contradiction(config)


def get_moe_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes name."""
    return decoder.get_sizes(config) | {"shared_intermediate_size": config.get("shared_intermediate_size", 0)}


def get_moe_optional(config: Config) -> list[str]:
    """The biases that no key asks for, and the shared expert of a model without one."""
    return llama.get_llama_optional(config) + ([] if config.get("shared_intermediate_size") else [*SHARED_EXPERT])


def prepare_granite_tensors(tensors: Tensors, config: Config) -> dict[str, LazyTensor]:
    """Split gates and ups that a checkpoint holds in one matrix, under the names that gguf's table has."""
    all_parts = EXPERT_PARTS if config["num_local_experts"] else DENSE_PARTS
    prepared = {}
    for name, tensor in tensors.items():
        layer, end = LAYER.fullmatch(name).groups()
        parts = all_parts.get(end, (end,))
        if len(parts) == 1 or len(tensor.shape) < 2:
            prepared[layer + parts[0]] = tensor
            continue
        rows = tensor.shape[-2] // len(parts)
        for number, part in enumerate(parts):
            last = tensor.shape[-2] if part == parts[-1] else (number + 1) * rows
            prepared[layer + part] = slice_matrices(tensor, number * rows, last)
    return prepared


def get_layer_types(config: Config) -> list[str]:
    """What each layer mixes positions with: Mamba, unless `layer_types` says otherwise."""
    return config.get("layer_types") or config.get("layers_block_type") or [MAMBA] * config["num_hidden_layers"]


def find_attention(config: Config) -> list[bool]:
    """Whether each layer has attention; else it has Mamba."""
    return [kind in ATTENTION_TYPES for kind in get_layer_types(config)]


def find_hybrid_contradiction(config: Config) -> str | None:
    """Name what in a configuration no hybrid can have."""
    return (
        decoder.find_wrong_layer_types(config | {"layer_types": get_layer_types(config)}, LAYER_TYPES)
        or mamba2.find_mamba2_contradiction(config)
        or (find_moe_contradiction(config) if config["num_local_experts"] else decoder.find_contradiction(config))
    )


def find_hybrid_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise or not load: positions, sizes, Mamba's settings, RoPE."""
    has_rope = config.get("position_embedding_type") == "rope"
    if has_rope != all(find_attention(config)):
        words = "all layers of attention" if not has_rope else "layers of Mamba"
        return f"position_embedding_type {config.get('position_embedding_type')} and {words}"
    if not all(find_attention(config)):
        reason = find_mixer_unsupported(config)
        if reason:
            return reason
    if not config["num_local_experts"] and config["num_experts_per_tok"]:
        return f"num_experts_per_tok {config['num_experts_per_tok']} and no experts (it is 0 for such a model)"
    if not config["num_local_experts"] and config["shared_intermediate_size"] != config["intermediate_size"]:
        return f"shared_intermediate_size {config['shared_intermediate_size']} other than the intermediate_size"
    return find_granite_unsupported(config)


def find_mixer_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise in Mamba's layers, or not load."""
    if config["mamba_expand"] != MAMBA_EXPAND:
        return f"mamba_expand {config['mamba_expand']}"
    return mamba2.find_mamba2_unsupported(config)


def get_hybrid_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes name."""
    return get_moe_sizes(config) | mamba2.get_mamba2_sizes(config)


def get_hybrid_absent(config: Config, layer: int) -> set[str]:
    """A layer's tensors of the other kind, and those of the other kind of model: with experts or dense."""
    mixer = mamba2.SHAPES if find_attention(config)[layer] else ATTENTION
    feed_forward = decoder.FEED_FORWARD if config["num_local_experts"] else experts.SHAPES | SHARED_EXPERT
    return {*mixer, *feed_forward} - {"blk.attn_norm.weight", "blk.ffn_norm.weight"}


def choose_hybrid_variant(config: Config) -> Architecture | None:
    """The hybrid without a layer of Mamba, as which llama.cpp has Granite 4's smallest models."""
    if not all(find_attention(config)):
        return None
    return replace(GRANITE_HYBRID, name=(GRANITE_MOE if config["num_experts_per_tok"] else GRANITE).name)


def set_hybrid_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write Granite's hyperparameters and Mamba's; the number of key and value heads is 0 where a layer has none."""
    attention, kv_heads = find_attention(config), decoder.get_kv_head_count(config)
    by_layer = {"num_key_value_heads": [kv_heads if attends else 0 for attends in attention]}
    context = {} if all(attention) else {"max_position_embeddings": CONTEXT_WITHOUT_POSITIONS}
    set_granite_gguf_parameters(writer, config | by_layer | context, file_type)
    mamba2.write_mamba2_parameters(writer, config)
    writer.add_rope_scaling_finetuned(all(attention))


GRANITE = replace(
    llama.LLAMA,
    name="granite",
    keys=KEYS,
    defaults=DEFAULTS,
    find_unsupported=find_granite_unsupported,
    set_gguf_parameters=set_granite_gguf_parameters,
)
GRANITE_MOE = replace(
    GRANITE,
    name="granitemoe",
    keys=KEYS | EXPERT_KEYS,
    defaults=DEFAULTS | {"num_local_experts": 8, "num_experts_per_tok": 2},
    shapes=decoder.EMBEDDINGS | ATTENTION | experts.SHAPES | SHARED_EXPERT,
    find_contradiction=find_moe_contradiction,
    get_sizes=get_moe_sizes,
    get_optional=get_moe_optional,
    prepare_tensors=prepare_granite_tensors,
)
GRANITE_HYBRID = replace(
    GRANITE_MOE,
    name="granitehybrid",
    keys=GRANITE_MOE.keys
    | mamba2.KEYS
    | dict.fromkeys(("num_local_experts", "num_experts_per_tok"), INDEX)
    | {"shared_intermediate_size": COUNT, "position_embedding_type": TEXT, "layers_block_type": list_of(TEXT)},
    defaults=GRANITE_MOE.defaults | mamba2.DEFAULTS | {"shared_intermediate_size": 1024},
    shapes=GRANITE_MOE.shapes | decoder.FEED_FORWARD | mamba2.SHAPES,
    reshaped=mamba2.RESHAPED,
    find_contradiction=find_hybrid_contradiction,
    get_sizes=get_hybrid_sizes,
    get_absent=get_hybrid_absent,
    find_unsupported=find_hybrid_unsupported,
    set_gguf_parameters=set_hybrid_gguf_parameters,
    set_vocab=lambda writer, _, vocab: write_vocab(writer, vocab),
    prepare_tensors=lambda tensors, config: prepare_granite_tensors(mamba2.prepare_mamba2_tensors(tensors), config),
    modify_tensors=lambda name, tensor, config: llama.modify_llama_tensors(
        name, mamba2.modify_mamba2_tensors(name, tensor, config), config
    ),
    choose_variant=choose_hybrid_variant,
)
