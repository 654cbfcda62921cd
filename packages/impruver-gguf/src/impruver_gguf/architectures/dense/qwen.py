"""Qwen2 (and 2.5) and Qwen3, with experts too; the text part of Qwen3-VL."""

import re
from dataclasses import replace

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, INDEX, list_of

from impruver_gguf.architectures.base import decoder, experts
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.lazy_tensor import Tensors, transpose_matrices

FUSED = re.compile(r"\.experts\.(gate_up|down)_proj(\.weight)?$")
VISION_KEYS = {"vision_config": {"deepstack_visual_indexes": list_of(INDEX)}}
DEEPSTACK = (8, 16, 24)  # the vision model's layers, where config.json names none
QKV_BIASES = {name: sizes for name, sizes in decoder.ATTENTION_BIASES.items() if name != "blk.attn_output.bias"}


def find_qwen_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: windows, RoPE, activation."""
    if decoder.has_sliding_window(config):
        return "sliding windows"
    return decoder.find_unsupported_rope(config, ("default", "linear", "yarn")) or decoder.find_unsupported(config)


def find_qwen2_unsupported(config: Config) -> str | None:
    """Name that, or heads of another width than the model's width makes them: llama.cpp refuses to load these."""
    return decoder.find_other_head_dim(config) or find_qwen_unsupported(config)


def find_qwen3_unsupported(config: Config) -> str | None:
    """Name that, or biases: llama.cpp knows none of Qwen3's."""
    return "attention_bias" if config.get("attention_bias") else find_qwen_unsupported(config)


def find_qwen3_moe_contradiction(config: Config) -> str | None:
    """Name what no mixture of Qwen3's decoders can have."""
    return decoder.find_contradiction(config) or experts.find_expert_contradiction(config)


def find_qwen3_moe_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: layers without experts, weights of experts that do not sum to 1."""
    if config["mlp_only_layers"] or config["decoder_sparse_step"] != 1:
        return "mlp_only_layers" if config["mlp_only_layers"] else "decoder_sparse_step"
    return find_qwen3_unsupported(config) if config["norm_topk_prob"] else "norm_topk_prob false"


def set_qwen3_moe_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters and the width of an expert."""
    decoder.set_gguf_parameters(writer, config, file_type)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])


def find_qwen3_vl_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise, or aborts at: Qwen3's, sections of RoPE, layers of deepstack."""
    if count_deepstack_layers(config) >= config["num_hidden_layers"]:
        return f"{count_deepstack_layers(config)} deepstack_visual_indexes"  # its last layer can't take features in
    unturned = decoder.find_unturned_pairs(decoder.get_rope(config), (), decoder.get_head_dim(config) // 2)
    return find_qwen3_unsupported(config) or unturned


def count_deepstack_layers(config: Config) -> int:
    """How many layers, from the first, take in features of an image besides."""
    indexes = (config.get("vision_config") or {}).get("deepstack_visual_indexes")
    return len(DEEPSTACK if indexes is None else indexes)


def find_qwen3_vl_moe_unsupported(config: Config) -> str | None:
    """Name that, or layers without experts; weights of experts sum to 1 in any case."""
    return find_qwen3_moe_unsupported(config | {"norm_topk_prob": True}) or find_qwen3_vl_unsupported(config)


def set_qwen3_vl_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, and how many layers take in features of an image besides."""
    decoder.set_gguf_parameters(writer, config, file_type)
    if "moe_intermediate_size" in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_num_deepstack_layers(count_deepstack_layers(config))


def prepare_qwen3_vl_experts(tensors: Tensors, config: Config) -> Tensors:
    """Have experts in stacks; on the hub they are (experts, columns, rows), and transformers 5 saves them as others'.

    Which of the two it is shows in one matrix where the other could be either; llama.cpp's script turns both.
    """
    width, hidden_size = config["moe_intermediate_size"], config["hidden_size"]
    telling, rows = ("down_proj", width) if 2 * width == hidden_size else ("gate_up_proj", hidden_size)
    fused = {name: tensor for name, tensor in tensors.items() if FUSED.search(name) and len(tensor.shape) == 3}
    if any(tensor.shape[1] == rows for name, tensor in fused.items() if telling in name):
        tensors = {name: transpose_matrices(tensor) if name in fused else tensor for name, tensor in tensors.items()}
    return experts.prepare_experts(tensors)


QWEN2 = decoder.make_architecture(
    name="qwen2",
    defaults=decoder.DEFAULTS
    | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "max_position_embeddings": 32768}
    | {"sliding_window": 4096, "max_window_layers": 28},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | QKV_BIASES | decoder.FEED_FORWARD,
    find_unsupported=find_qwen2_unsupported,
)
QWEN3 = replace(
    QWEN2,
    name="qwen3",
    defaults=QWEN2.defaults | {"head_dim": 128},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | decoder.HEAD_NORMS | decoder.FEED_FORWARD,
    find_unsupported=find_qwen3_unsupported,
)
QWEN3_MOE = replace(
    QWEN3,
    name="qwen3moe",
    keys=decoder.KEYS | experts.KEYS | {"decoder_sparse_step": COUNT, "mlp_only_layers": list_of(INDEX)},
    defaults=decoder.DEFAULTS
    | {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24}
    | {"num_key_value_heads": 4, "max_position_embeddings": 32768, "sliding_window": 4096}
    | {"moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128, "norm_topk_prob": False}
    | {"decoder_sparse_step": 1, "mlp_only_layers": []},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | decoder.HEAD_NORMS | experts.SHAPES,
    find_contradiction=find_qwen3_moe_contradiction,
    find_unsupported=find_qwen3_moe_unsupported,
    set_gguf_parameters=set_qwen3_moe_gguf_parameters,
    prepare_tensors=experts.prepare_experts,
)
QWEN3_VL = replace(
    QWEN3,
    name="qwen3vl",
    keys=decoder.KEYS | VISION_KEYS,
    defaults=decoder.DEFAULTS
    | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32, "head_dim": 128}
    | {"max_position_embeddings": 128000, "rope_theta": 5e5},
    find_unsupported=find_qwen3_vl_unsupported,
    set_gguf_parameters=set_qwen3_vl_gguf_parameters,
)
QWEN3_VL_MOE = replace(
    QWEN3_MOE,
    name="qwen3vlmoe",
    keys=QWEN3_MOE.keys | VISION_KEYS,
    defaults=decoder.DEFAULTS
    | {"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24}
    | {"num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 128000, "rope_theta": 5e5}
    | {"moe_intermediate_size": 1408, "num_experts_per_tok": 4, "num_experts": 60, "decoder_sparse_step": 1}
    | {"mlp_only_layers": []},
    find_unsupported=find_qwen3_vl_moe_unsupported,
    set_gguf_parameters=set_qwen3_vl_gguf_parameters,
    prepare_tensors=prepare_qwen3_vl_experts,
)
