"""gpt-oss: experts in MXFP4 as on the hub or in 16 bits as training saves them, gates and ups in alternate rows."""

from collections.abc import Iterator

import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import NUMBER, TEXT

from impruver_gguf.architectures.base import decoder, experts
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors

FULL, SLIDING = "full_attention", "sliding_attention"
SWIGLU = {"swiglu_alpha": 1.702, "swiglu_limit": 7.0}  # llama.cpp's own, transformers' defaults
ROPE = {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False}
ROPE |= {"original_max_position_embeddings": 4096}
BLOCK, BLOCK_BYTES = 32, 16  # values of MXFP4 that share a scale, and the bytes that they have without it
WHOLE_FILE_TYPES = (LlamaFileType.ALL_F32, LlamaFileType.MOSTLY_F16, LlamaFileType.MOSTLY_BF16)
BIASES = {
    "blk.ffn_gate_inp.bias": ("num_experts",),
    "blk.ffn_gate_exps.bias": ("num_experts", "moe_intermediate_size"),
    "blk.ffn_up_exps.bias": ("num_experts", "moe_intermediate_size"),
    "blk.ffn_down_exps.bias": ("num_experts", "hidden_size"),
}
OTHERS = {"blk.attn_sinks.weight": ("num_attention_heads",), "blk.post_attention_norm.weight": ("hidden_size",)}
SHAPES = decoder.EMBEDDINGS | decoder.ATTENTION | decoder.ATTENTION_BIASES | experts.SHAPES | BIASES | OTHERS


def complete_rope(config: Config) -> Config:
    """Fill in RoPE's parameters where a configuration has none at all."""
    return config if config.get("rope_parameters") or config.get("rope_scaling") else config | {"rope_parameters": ROPE}


def get_gpt_oss_sizes(config: Config) -> dict[str, int]:
    """The sizes that SHAPES names."""
    return decoder.get_sizes(config) | {"num_attention_heads": config["num_attention_heads"]}


def find_gpt_oss_contradiction(config: Config) -> str | None:
    """Name what no such model can have."""
    return decoder.find_contradiction(complete_rope(config)) or experts.find_expert_contradiction(config)


def find_gpt_oss_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise, or not load: other layers with windows, RoPE, activation, biases."""
    for name, value in SWIGLU.items():
        if config[name] != value:
            return f"{name} {config[name]}"
    kinds = [FULL if layer % 2 else SLIDING for layer in range(config["num_hidden_layers"])]
    if (config.get("layer_types") or kinds) != kinds:
        return "layer_types other than a window in each first of two"
    if not config["attention_bias"] or config["tie_word_embeddings"]:
        return "tie_word_embeddings" if config["tie_word_embeddings"] else "attention_bias false"
    if config.get("sliding_window") is None:
        return "sliding_window null"
    rope = decoder.get_rope(complete_rope(config)) | {"truncate": True}  # see find_gpt_oss_inexact
    named = config | {"rope_parameters": rope}
    return decoder.find_unsupported_rope(named, ("default", "yarn")) or decoder.find_unsupported(config)


def find_gpt_oss_inexact(config: Config) -> str | None:
    """Say that llama.cpp rounds YaRN's range of dimensions, which gpt-oss's own configuration does not want.

    Every GGUF of these models is computed so; llama.cpp has no key for it.
    """
    rope = decoder.get_rope(complete_rope(config))
    if rope["rope_type"] != "yarn" or rope.get("truncate", True):
        return None
    return "llama.cpp rounds the range of yarn as if truncate were true: its logits differ a little from transformers'"


def is_packed(config: Config) -> bool:
    """Whether a configuration says that the experts are in MXFP4."""
    return (config.get("quantization_config") or {}).get("quant_method") == "mxfp4"


def get_gpt_oss_encoding(name: str, config: Config) -> str | None:
    """In what a checkpoint holds a tensor already, by its GGUF name."""
    return "mxfp4" if is_packed(config) and name.endswith("_exps.weight") else None


def set_gpt_oss_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, the window and the width of an expert."""
    if is_packed(config) and file_type in WHOLE_FILE_TYPES:
        file_type = LlamaFileType.MOSTLY_MXFP4_MOE
    decoder.set_gguf_parameters(writer, complete_rope(config), file_type)
    writer.add_sliding_window(config["sliding_window"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])


def prepare_gpt_oss_tensors(tensors: Tensors, config: Config) -> dict[str, LazyTensor]:
    """Put gates and ups apart, experts' matrices as other layers have theirs; what is packed comes first."""
    packed, others = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(("_blocks", "_scales")):
            packed |= dict(_repack(name, tensors))
        elif name.endswith("_proj_bias"):
            others |= dict(_split_bias(name.removesuffix("_bias"), tensor))
        elif name.endswith(".experts.down_proj"):
            others[f"{name}.weight"] = _transpose(tensor)
        elif name.endswith(".experts.gate_up_proj"):
            for part, offset in (("gate", 0), ("up", 1)):
                others[f"{name.replace('gate_up', part)}.weight"] = _transpose(tensor, offset, 2)
        else:
            others[f"{name}.weight" if name.endswith(".sinks") else name] = tensor
    return packed | others


def _split_bias(name: str, bias: LazyTensor) -> Iterator[tuple[str, LazyTensor]]:
    """Yield the bias (experts, outputs) of down, or those of gate and up, which alternate in one."""
    if not name.endswith("gate_up_proj"):
        yield f"{name}.bias", bias
        return
    shape = (*bias.shape[:-1], bias.shape[-1] // 2)
    for part, offset in (("gate", 0), ("up", 1)):
        read = lambda start, stop, offset=offset: bias.read(start, stop)[..., offset::2]  # noqa: E731
        yield f"{name.replace('gate_up', part)}.bias", LazyTensor(shape, read)


def _transpose(stack: LazyTensor, offset: int = 0, step: int = 1) -> LazyTensor:
    """Transpose each matrix of a stack (experts, inputs, outputs), and pick each `step`th of its rows then."""
    count, inputs, outputs = stack.shape
    height = outputs // step

    def read(start: int, stop: int) -> np.ndarray:
        first, last = start // height, -(-stop // height)
        values = stack.read(first * inputs, last * inputs).reshape(last - first, inputs, outputs)
        rows = values[:, :, offset::step].swapaxes(1, 2).reshape(-1, inputs)
        return rows[start - first * height : stop - first * height]

    return LazyTensor((count, height, inputs), read, rows_at_once=height)


def _repack(name: str, tensors: Tensors) -> Iterator[tuple[str, LazyTensor]]:
    """Yield what is packed under `*_blocks` and `*_scales` as GGUF's tensors, once the scales come."""
    module = name.removesuffix("_blocks").removesuffix("_scales")
    blocks, scales = tensors.get(f"{module}_blocks"), tensors.get(f"{module}_scales")
    if blocks is None or scales is None or blocks.shape != (*scales.shape, BLOCK_BYTES) or len(scales.shape) != 3:
        raise ImpruverError(
            f"{module}_blocks and {module}_scales do not belong together: the weights are not whole, copy them again"
        )
    if name.endswith("_blocks"):
        return
    if not module.endswith("gate_up_proj"):
        yield f"{module}.weight", _join_blocks(blocks, scales, 0, 1)
        return
    for part, offset in (("gate", 0), ("up", 1)):
        yield f"{module.replace('gate_up', part)}.weight", _join_blocks(blocks, scales, offset, 2)


def _join_blocks(blocks: LazyTensor, scales: LazyTensor, offset: int, step: int) -> LazyTensor:
    """Join MXFP4's blocks (experts, rows, groups, 16) with their scales as ggml does, of each `step`th row.

    A row's bytes are those of its groups: the scale's, then 16 that have values 0 to 15 in their lower halves and 16
    to 31 in the upper ones. A checkpoint has neighbours in a byte.
    """
    count, rows, groups = scales.shape
    height = rows // step

    def read(start: int, stop: int) -> np.ndarray:
        first, last = start * step, stop * step
        packed = blocks.read(first * groups, last * groups).reshape(-1, groups, BLOCK_BYTES)[offset::step]
        values = np.stack((packed & 0x0F, packed >> 4), axis=-1).reshape(-1, groups, BLOCK)
        joined = values[..., :BLOCK_BYTES] | values[..., BLOCK_BYTES:] << 4
        exponents = scales.read(first, last)[offset::step, :, None]
        return np.concatenate((exponents, joined), axis=-1).reshape(stop - start, -1)

    return LazyTensor((count, height, groups * BLOCK), read, encoding=GGMLQuantizationType.MXFP4.name.lower())


GPT_OSS = decoder.make_architecture(
    name="gpt-oss",
    keys=decoder.KEYS
    | experts.KEYS
    | dict.fromkeys(SWIGLU, NUMBER)
    | {"rope_parameters": decoder.ROPE_KEYS, "quantization_config": {"quant_method": TEXT}},
    defaults=decoder.DEFAULTS
    | {"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36}
    | {"num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "sliding_window": 128}
    | {"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "attention_bias": True}
    | {"num_experts_per_tok": 4, "num_local_experts": 128}
    | SWIGLU,
    shapes={name: sizes for name, sizes in SHAPES.items() if name != "blk.ffn_norm.weight"},
    get_sizes=get_gpt_oss_sizes,
    find_contradiction=find_gpt_oss_contradiction,
    find_unsupported=find_gpt_oss_unsupported,
    find_inexact=find_gpt_oss_inexact,
    set_gguf_parameters=set_gpt_oss_gguf_parameters,
    prepare_tensors=prepare_gpt_oss_tensors,
    get_encoding=get_gpt_oss_encoding,
)
