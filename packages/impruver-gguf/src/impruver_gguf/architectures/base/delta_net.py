"""Qwen3-Next and Qwen3.5: gated delta nets (linear attention) in most layers, gated attention to all in the others.

Of the multi-token prediction (`mtp`) that checkpoints of the hub bring, llama.cpp makes further layers after the last.
The recurrence's values have more heads than its queries and keys; a group of them shares a key. Where llama.cpp repeats
keys head by head, transformers repeats each in its place, so the values' heads are put in another order:

    transformers: key 0 value 0, key 0 value 1, key 1 value 0, key 1 value 1
    llama.cpp:    key 0 value 0, key 1 value 0, key 0 value 1, key 1 value 1
"""

from collections.abc import Collection
from dataclasses import replace

import numpy as np
from gguf import GGUFWriter
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import COUNT, INDEX

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.exponential import compute_exp
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, add_one, select_rows

FULL, LINEAR = "full_attention", "linear_attention"
SHARED = "shared_expert_intermediate_size"  # the width of the expert that all tokens share, in a mixture
ROPE_TYPES = ("default", "linear", "yarn")
INTERVAL = 4  # each fourth layer attends to all, where config.json says nothing
MAIN = "layers without mtp"  # our own key: what num_hidden_layers was before those of mtp were added
MTP = "mtp"
QKVZ = "in_proj_qkvz.weight"
ONE_PER_HEAD = ("in_proj_a", "in_proj_b", "A_log", "dt_proj")  # what has a row for each head of values
MTP_NAMES = {  # of mtp's own modules → in a GGUF
    "fc": "nextn.eh_proj",
    "pre_fc_norm_embedding": "nextn.enorm",
    "pre_fc_norm_hidden": "nextn.hnorm",
    "norm": "nextn.shared_head_norm",
}
HEADS = ("linear_num_key_heads", "linear_num_value_heads")
KEYS = decoder.KEYS | {
    **dict.fromkeys((*HEADS, "linear_key_head_dim", "linear_value_head_dim", "linear_conv_kernel_dim"), COUNT),
    "full_attention_interval": COUNT,
    "mtp_num_hidden_layers": INDEX,
}
DEFAULTS = (
    decoder.DEFAULTS
    | {"num_attention_heads": 16, "max_position_embeddings": 32768, "head_dim": 256, "partial_rotary_factor": 0.25}
    | {"linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_key_head_dim": 128}
    | {"linear_value_head_dim": 128, "linear_conv_kernel_dim": 4}
)
GATED_QUERIES, TWICE = "2 x num_attention_heads x head_dim", "2 x hidden_size"
VALUES, CHANNELS = "linear_num_value_heads x linear_value_head_dim", "convolved queries, keys and values"
ATTENTION = {
    name: (GATED_QUERIES, "hidden_size") if name == "blk.attn_q.weight" else sizes
    for name, sizes in (decoder.ATTENTION | decoder.HEAD_NORMS).items()
    if name != "blk.attn_norm.weight"
}
RECURRENCE = {
    "blk.attn_qkv.weight": (CHANNELS, "hidden_size"),
    "blk.attn_gate.weight": (VALUES, "hidden_size"),
    "blk.ssm_conv1d.weight": (CHANNELS, "1", "linear_conv_kernel_dim"),
    "blk.ssm_dt.bias": ("linear_num_value_heads",),
    "blk.ssm_a": ("linear_num_value_heads",),
    "blk.ssm_norm.weight": ("linear_value_head_dim",),
    "blk.ssm_out.weight": ("hidden_size", VALUES),
}
PREDICTION = {
    "blk.nextn.eh_proj.weight": ("hidden_size", TWICE),
    **{f"blk.nextn.{name}.weight": ("hidden_size",) for name in ("enorm", "hnorm", "shared_head_norm")},
}
SHAPES = {
    **decoder.EMBEDDINGS,
    **{f"blk.{name}.weight": ("hidden_size",) for name in ("attn_norm", "post_attention_norm")},
    **(ATTENTION | RECURRENCE | PREDICTION),
}
RESHAPED = {"blk.ssm_conv1d.weight": (CHANNELS, "linear_conv_kernel_dim")}


def get_layer_types(config: Config) -> list[str]:
    """Which attention each layer has; those of mtp attend to all."""
    count, step = get_main_count(config), config.get("full_attention_interval", INTERVAL)
    types = config.get("layer_types") or [LINEAR if (layer + 1) % step else FULL for layer in range(count)]
    return [*types, *[FULL] * (config["num_hidden_layers"] - count)]


def get_main_count(config: Config) -> int:
    """The number of layers without those of mtp."""
    return config.get(MAIN, config["num_hidden_layers"])


def is_mtp(name: str) -> bool:
    """Whether a tensor is one of multi-token prediction."""
    return name.removeprefix("model.").startswith(f"{MTP}.")


def count_mtp_layers(config: Config, names: Collection[str]) -> Config:
    """A configuration with the layers of mtp that these tensors have; transformers drops them when it saves a model."""
    layers = {name.split(".layers.")[1].partition(".")[0] for name in names if f"{MTP}.layers." in name}
    count = config["num_hidden_layers"]
    return config | {"num_hidden_layers": count + len(layers), MAIN: count}


def get_absent(config: Config, layer: int, recurrence: Collection[str]) -> set[str]:
    """What a layer lacks: one of the two kinds of attention, mtp's own; `recurrence` is what a family adds to that."""
    absent = {*RECURRENCE, *recurrence} if get_layer_types(config)[layer] == FULL else {*ATTENTION}
    return absent | {*PREDICTION} if layer < get_main_count(config) else absent


def get_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` names."""
    keys, values = (config[name] for name in HEADS)
    value_width = values * config["linear_value_head_dim"]
    return decoder.get_sizes(config) | {
        **{
            name: config[name] for name in ("linear_num_value_heads", "linear_value_head_dim", "linear_conv_kernel_dim")
        },
        "1": 1,
        GATED_QUERIES: 2 * config["num_attention_heads"] * config["head_dim"],
        TWICE: 2 * config["hidden_size"],
        VALUES: value_width,
        CHANNELS: 2 * keys * config["linear_key_head_dim"] + value_width,
    }


def find_contradiction(config: Config) -> str | None:
    """Name what no such model can have: heads or layers that do not fit each other, and a decoder's."""
    keys, values = (config[name] for name in HEADS)
    if values % keys:
        return f"linear_num_value_heads {values} is no multiple of linear_num_key_heads {keys}"
    if get_rotary_dim(config) % 2:
        return f"RoPE turns {get_rotary_dim(config)} values of a head (partial_rotary_factor), and they should be pairs"
    return decoder.find_wrong_layer_types(config, (FULL, LINEAR)) or decoder.find_contradiction(config)


def find_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise, or does not load: widths of heads, biases, RoPE, activation."""
    width = config["linear_key_head_dim"]
    if config["linear_value_head_dim"] != width:
        return f"linear_value_head_dim {config['linear_value_head_dim']} and linear_key_head_dim {width}"
    if config["linear_conv_kernel_dim"] < 2:
        return f"linear_conv_kernel_dim {config['linear_conv_kernel_dim']}"
    if config.get("attention_bias"):
        return "attention_bias"
    return decoder.find_unsupported_rope(config, ROPE_TYPES, partial_rotary=True) or decoder.find_unsupported(config)


def get_rotary_dim(config: Config) -> int:
    """How many values of a head RoPE turns."""
    return int(config["head_dim"] * decoder.get_rope(config)["partial_rotary_factor"])


def prepare_tensors(tensors: Tensors, config: Config) -> Tensors:
    """Give tensors of mtp the names of layers after the last; split the projection of queries, keys, values, gates."""
    prepared: dict[str, LazyTensor] = {}
    for name, tensor in tensors.items():
        renamed = _rename_tensor(name, get_main_count(config))
        if renamed in prepared:
            raise ImpruverError(f"{name} and another tensor are both {renamed}: the weights are of two models")
        prepared |= _split_projection(renamed, tensor, config)
    return prepared


def _rename_tensor(name: str, main_count: int) -> str:
    if name.endswith(".dt_bias"):
        name = f"{name.removesuffix('.dt_bias')}.dt_proj.bias"
    parts = name.removeprefix("model.").split(".")
    if parts[0] != MTP or len(parts) < 3:
        return name
    if parts[1] == "layers" and parts[2].isdecimal():
        return ".".join(["model.layers", str(main_count + int(parts[2])), *parts[3:]])
    return f"blk.{main_count}.{MTP_NAMES[parts[1]]}.{parts[2]}" if parts[1] in MTP_NAMES else name


def _split_projection(name: str, tensor: LazyTensor, config: Config) -> dict[str, LazyTensor]:
    """Split Qwen3-Next's `in_proj_qkvz`, where each key head has its query, key, values and gates side by side."""
    keys, values = (config[head] for head in HEADS)
    key_dim, value_width = config["linear_key_head_dim"], values // keys * config["linear_value_head_dim"]
    width = 2 * (key_dim + value_width)
    if not name.endswith(QKVZ) or tensor.shape != (keys * width, config["hidden_size"]):
        return {name: tensor}  # what a wrong shape should be is said of it as it is
    rows = np.arange(keys * width).reshape(keys, width)
    queries, keys, values, gates = np.split(rows, np.cumsum([key_dim, key_dim, value_width]), axis=1)
    parts = {
        "in_proj_qkv.weight": np.concatenate([queries, keys, values], axis=None),
        "in_proj_z.weight": gates.ravel(),
    }
    return {name.replace(QKVZ, part): select_rows(tensor, order) for part, order in parts.items()}


def modify_tensors(name: str, tensor: LazyTensor, config: Config) -> LazyTensor:
    """Make what llama.cpp computes with: one added to norms, -exp(A_log)."""
    if name.endswith(".A_log"):
        return LazyTensor(tensor.shape, lambda start, stop: -compute_exp(tensor.read(start, stop)))
    if name.endswith("norm.weight") and not name.endswith("linear_attn.norm.weight"):
        return add_one(tensor)
    return tensor


def modify_grouped_tensors(name: str, tensor: LazyTensor, config: Config) -> LazyTensor:
    """Make the same of Qwen3.5's tensors, with the heads of values in llama.cpp's order."""
    tensor = modify_tensors(name, tensor, config)
    head_dim, channels = config["linear_value_head_dim"], get_sizes(config)[CHANNELS]
    module = name.partition("linear_attn.")[2].partition(".")[0]
    if module == "out_proj":
        columns = _order_values(config, head_dim)
        return replace(tensor, read=lambda start, stop: tensor.read(start, stop)[:, columns])
    if module in ("in_proj_qkv", "conv1d"):
        values = _order_values(config, head_dim)
        return select_rows(tensor, np.concatenate([np.arange(channels - len(values)), channels - len(values) + values]))
    if module == "in_proj_z":
        return select_rows(tensor, _order_values(config, head_dim))
    return select_rows(tensor, _order_values(config, 1)) if module in ONE_PER_HEAD else tensor


def _order_values(config: Config, width: int) -> np.ndarray:
    """Where llama.cpp's rows of values stand in transformers' order, `width` of them a head."""
    keys, values = (config[head] for head in HEADS)
    return np.arange(values * width).reshape(keys, values // keys, width).swapaxes(0, 1).ravel()


def set_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, the recurrence's, which layers have it, how much of a head RoPE turns."""
    decoder.set_gguf_parameters(writer, config, file_type)
    if SHARED in config:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
        writer.add_expert_shared_feed_forward_length(config[SHARED])
    count, main_count = config["num_hidden_layers"], get_main_count(config)
    if count > main_count:
        writer.add_nextn_predict_layers(count - main_count)
    writer.add_ssm_conv_kernel(config["linear_conv_kernel_dim"])
    writer.add_ssm_state_size(config["linear_key_head_dim"])
    writer.add_ssm_group_count(config["linear_num_key_heads"])
    writer.add_ssm_time_step_rank(config["linear_num_value_heads"])
    writer.add_ssm_inner_size(config["linear_value_head_dim"] * config["linear_num_value_heads"])
    linear = [kind == LINEAR for kind in get_layer_types(config)]
    writer.add_array(f"{writer.arch}.attention.recurrent_layers", linear)  # gguf has no function for it yet
    # Only old llama.cpp reads the interval. The script has transformers complete config.json, where it then is no more.
    interval = config.get("full_attention_interval") if config.get("layer_types") else None
    writer.add_full_attention_interval(interval or INTERVAL)
    writer.add_rope_dimension_count(get_rotary_dim(config))
