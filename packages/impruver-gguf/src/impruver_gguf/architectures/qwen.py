"""Qwen2 (and 2.5) and Qwen3, with experts too."""

from dataclasses import replace

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, INDEX, list_of

from impruver_gguf.architectures import decoder, experts
from impruver_gguf.architectures.architecture import Config

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
