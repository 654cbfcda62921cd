"""GPT-NeoX (EleutherAI's 20B and Pythia): one matrix of queries, keys and values by head, RoPE on a part of a head."""

import numpy as np
from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, NUMBER, POSITIVE, TEXT

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Architecture, Config
from impruver_gguf.merging.merge import TiedModules
from impruver_gguf.weights.lazy_tensor import LazyTensor

QKV, THETA = "3 x hidden_size", 10000.0
SIZES = ("vocab_size", "hidden_size", "intermediate_size")
KEYS = {
    **dict.fromkeys((*SIZES, "num_hidden_layers", "num_attention_heads", "max_position_embeddings"), COUNT),
    **dict.fromkeys(("layer_norm_eps", "rotary_emb_base"), POSITIVE),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "use_parallel_residual"), FLAG),
    "rotary_pct": NUMBER,
    "hidden_act": TEXT,
    "rope_parameters": decoder.ROPE_KEYS,
    "rope_scaling": decoder.ROPE_KEYS,
}
WEIGHTS = decoder.EMBEDDINGS | {
    "blk.attn_norm.weight": ("hidden_size",),
    "blk.attn_qkv.weight": (QKV, "hidden_size"),
    "blk.attn_output.weight": ("hidden_size", "hidden_size"),
    "blk.ffn_norm.weight": ("hidden_size",),
    "blk.ffn_up.weight": ("intermediate_size", "hidden_size"),
    "blk.ffn_down.weight": ("hidden_size", "intermediate_size"),
}
BIASED = ("output_norm.", "blk.")
SHAPES = WEIGHTS | {
    name.replace(".weight", ".bias"): sizes[:1] for name, sizes in WEIGHTS.items() if name.startswith(BIASED)
}
# llama.cpp computes GELU by tanh for all of them; the models' own "gelu" differs from that by less than 0.001.
ACTIVATIONS = ("gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh")


def get_rope(config: Config) -> Config:
    """RoPE's parameters, which this family calls otherwise outside of rope_parameters."""
    names = {"rope_theta": config["rotary_emb_base"], "partial_rotary_factor": config["rotary_pct"]}
    return decoder.get_rope(config | names)


def get_rotary_dim(config: Config) -> int:
    """How many values of a head RoPE turns."""
    return int(get_rope(config)["partial_rotary_factor"] * decoder.get_head_dim(config))


def get_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` names."""
    return {name: config[name] for name in SIZES} | {QKV: 3 * config["hidden_size"]}


def find_contradiction(config: Config) -> str | None:
    """Name what in a configuration no GPT-NeoX can have."""
    width, heads = config["hidden_size"], config["num_attention_heads"]
    if width % heads:
        return f"hidden_size {width} is no multiple of num_attention_heads {heads}"
    turned = get_rotary_dim(config)
    if turned % 2 or not 0 < turned <= decoder.get_head_dim(config):
        return f"rotary_pct turns {turned} of {decoder.get_head_dim(config)} values of a head, and RoPE turns pairs"
    return None


def find_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: it has no place for RoPE's parameters, tied ends, missing biases."""
    rope = get_rope(config)
    if rope["rope_type"] != "default":
        return f"rope_type {rope['rope_type']}"
    if rope["rope_theta"] != THETA:
        return f"rotary_emb_base {rope['rope_theta']}"
    if not config["attention_bias"]:
        return "attention_bias false"
    if config["tie_word_embeddings"]:
        return "tie_word_embeddings"
    return f"hidden_act {config['hidden_act']}" if config["hidden_act"] not in ACTIVATIONS else None


def set_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters in llama.cpp's order, which writes no file type."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_rope_dimension_count(get_rotary_dim(config))
    writer.add_head_count(config["num_attention_heads"])
    writer.add_parallel_residual(config["use_parallel_residual"])
    writer.add_layer_norm_eps(config["layer_norm_eps"])


def modify_tensors(name: str, tensor: LazyTensor, config: Config) -> LazyTensor:
    """Put all queries before all keys before all values; transformers has the three of each head together."""
    if ".query_key_value." not in name:
        return tensor
    width, head_dim = config["hidden_size"], decoder.get_head_dim(config)

    def read(start: int, stop: int) -> np.ndarray:
        pieces = []
        while start < stop:
            part, place = divmod(start, width)
            head, row = divmod(place, head_dim)
            count, first = min(head_dim - row, stop - start), (3 * head + part) * head_dim + row
            pieces.append(tensor.read(first, first + count))
            start += count
        return np.concatenate(pieces)

    return LazyTensor(tensor.shape, read)


GPT_NEOX = Architecture(
    name="gptneox",
    blocks="num_hidden_layers",
    tied=TiedModules("gpt_neox.embed_in", "embed_out"),
    keys=KEYS,
    defaults={"vocab_size": 50432, "hidden_size": 6144, "intermediate_size": 24576, "num_hidden_layers": 44}
    | {"num_attention_heads": 64, "max_position_embeddings": 2048, "layer_norm_eps": 1e-5, "hidden_act": "gelu"}
    | {"rotary_pct": 0.25, "rotary_emb_base": THETA, "tie_word_embeddings": False}
    | {"use_parallel_residual": True, "attention_bias": True},
    find_contradiction=find_contradiction,
    get_sizes=get_sizes,
    shapes=SHAPES,
    find_unsupported=find_unsupported,
    set_gguf_parameters=set_gguf_parameters,
    modify_tensors=modify_tensors,
)
