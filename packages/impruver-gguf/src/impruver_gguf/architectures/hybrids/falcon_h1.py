"""Falcon-H1: attention and Mamba 2 side by side in each layer; GGUF's matrices hold the configuration's multipliers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from gguf import GGUFWriter
from impruver_core.io.json_schema import FLAG, NUMBER, list_of

from impruver_gguf.architectures.base import decoder, mamba2
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.lazy_tensor import LazyTensor

BIASES = ("attention_bias", "mlp_bias", "projectors_bias")
FACTORS = ("attention_in_multiplier", "attention_out_multiplier", "key_multiplier", "ssm_in_multiplier")
FACTORS += ("ssm_out_multiplier", "lm_head_multiplier", "embedding_multiplier")
GATE, DOWN = 0, 1  # in mlp_multipliers
PARTS = 5  # of in_proj, each with its multiplier: gate, x, B, C, time steps
FEED_FORWARD = {name: sizes for name, sizes in decoder.FEED_FORWARD.items() if name != "blk.ffn_norm.weight"}


def find_falcon_h1_contradiction(config: Config) -> str | None:
    """Name what in a configuration no such model can have."""
    for name, count in (("mlp_multipliers", 2), ("ssm_multipliers", PARTS)):
        if len(config[name]) != count:
            return f"{name} holds {len(config[name])} numbers, and should hold {count}"
    return mamba2.find_mamba2_contradiction(config) or decoder.find_contradiction(config)


def find_falcon_h1_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: biases, a norm before the gate, two scales of tied embeddings."""
    biased = next((name for name in BIASES if config.get(name)), None)
    if biased:
        return biased
    if config["mamba_rms_norm"] and config["mamba_norm_before_gate"]:
        return "mamba_norm_before_gate"
    if config["tie_word_embeddings"] and config["lm_head_multiplier"] != config["embedding_multiplier"]:
        return "tied embeddings whose lm_head_multiplier is not the embedding_multiplier"
    return (
        mamba2.find_mamba2_unsupported(config)
        or decoder.find_unsupported_rope(config, ("default",))
        or decoder.find_unsupported(config)
    )


def get_falcon_h1_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes name."""
    return decoder.get_sizes(config) | mamba2.get_mamba2_sizes(config)


def get_falcon_h1_optional(config: Config) -> list[str]:
    """Mamba's norm, where there is none."""
    return [] if config["mamba_rms_norm"] else [mamba2.NORM]


def modify_falcon_h1_tensors(name: str, tensor: LazyTensor, config: Config) -> LazyTensor:
    """Multiply weights by what the model multiplies their inputs or outputs with, as llama.cpp's converter does."""
    if name.endswith("mamba.in_proj.weight"):
        return _multiply(tensor, [np.full(1, config["ssm_in_multiplier"]), _make_column(config)])
    factors = {
        "down_proj": [config["mlp_multipliers"][DOWN]],
        "gate_proj": [config["mlp_multipliers"][GATE]],
        "k_proj": [config["key_multiplier"], config["attention_in_multiplier"]],
        "q_proj": [config["attention_in_multiplier"]],
        "v_proj": [config["attention_in_multiplier"]],
        "o_proj": [config["attention_out_multiplier"]],
        "out_proj": [config["ssm_out_multiplier"]],
        "lm_head": [config["lm_head_multiplier"]],
        "embed_tokens": [config["embedding_multiplier"]],
    }.get(name.removesuffix(".weight").rpartition(".")[2])
    if factors is None:
        return mamba2.modify_mamba2_tensors(name, tensor, config)
    return _multiply(tensor, [np.full(1, factor) for factor in factors])


def _make_column(config: Config) -> np.ndarray:
    """The multiplier of each row of in_proj."""
    inner, states = mamba2.get_inner_size(config), config["mamba_n_groups"] * config["mamba_d_state"]
    return np.repeat(config["ssm_multipliers"], (inner, inner, states, states, config["mamba_n_heads"]))


def _multiply(tensor: LazyTensor, factors: Sequence[np.ndarray]) -> LazyTensor:
    """Multiply a matrix by one factor or one for each row, several times; each result is rounded to its precision."""

    def read(start: int, stop: int) -> np.ndarray:
        values = tensor.read(start, stop)
        for factor in factors:
            column = factor if len(factor) == 1 else factor[start:stop]
            values = (values * column.astype(np.float32)[:, None]).astype(values.dtype)
        return values

    return replace(tensor, read=read)


def set_falcon_h1_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters in llama.cpp's order."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_ssm_conv_kernel(config["mamba_d_conv"])
    writer.add_ssm_inner_size(mamba2.get_inner_size(config))
    writer.add_ssm_state_size(config["mamba_d_state"])
    writer.add_ssm_time_step_rank(config["mamba_n_heads"])
    writer.add_ssm_group_count(config["mamba_n_groups"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_file_type(file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_head_count_kv(decoder.get_kv_head_count(config))
    writer.add_key_length(decoder.get_head_dim(config))
    writer.add_value_length(decoder.get_head_dim(config))
    writer.add_rope_freq_base(decoder.get_rope(config)["rope_theta"])


FALCON_H1 = decoder.make_architecture(
    name="falcon-h1",
    keys=decoder.KEYS
    | mamba2.KEYS
    | dict.fromkeys((*BIASES, "mamba_rms_norm", "mamba_norm_before_gate"), FLAG)
    | dict.fromkeys(FACTORS, NUMBER)
    | dict.fromkeys(("mlp_multipliers", "ssm_multipliers"), list_of(NUMBER)),
    defaults=decoder.DEFAULTS
    | mamba2.DEFAULTS
    | {"vocab_size": 128000, "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 8192}
    | {"rms_norm_eps": 1e-5, "mamba_d_ssm": 1024, "mamba_rms_norm": False, "mamba_norm_before_gate": True}
    | dict.fromkeys(FACTORS, 1.0)
    | {"mlp_multipliers": [1.0] * 2, "ssm_multipliers": [1.0] * PARTS},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | mamba2.SHAPES | {"blk.ffn_norm": ("hidden_size",)} | FEED_FORWARD,
    reshaped=mamba2.RESHAPED,
    find_contradiction=find_falcon_h1_contradiction,
    get_sizes=get_falcon_h1_sizes,
    get_optional=get_falcon_h1_optional,
    find_unsupported=find_falcon_h1_unsupported,
    set_gguf_parameters=set_falcon_h1_gguf_parameters,
    prepare_tensors=mamba2.prepare_mamba2_tensors,
    modify_tensors=modify_falcon_h1_tensors,
)
