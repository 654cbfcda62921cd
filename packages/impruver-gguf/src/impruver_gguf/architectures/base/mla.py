"""Multi-head latent attention (DeepSeek V2's): queries, keys and values that pass through matrices of a low rank.

llama.cpp attends to the compressed keys and values themselves, as one head that all queries share. So the matrix that
expands them (`kv_b_proj`) becomes two: the keys' part, transposed, for the queries; the values' part for the result.
"""

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT

from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.lazy_tensor import LazyTensor, slice_matrices, transpose_matrices

KEYS = dict.fromkeys(("q_lora_rank", "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"), COUNT)
QUERIES, VALUES = "num_attention_heads x (qk_nope_head_dim + qk_rope_head_dim)", "num_attention_heads x v_head_dim"
COMPRESSED = "kv_lora_rank + qk_rope_head_dim"
SHAPES = {
    "blk.attn_norm.weight": ("hidden_size",),
    "blk.attn_q.weight": (QUERIES, "hidden_size"),
    "blk.attn_q_a.weight": ("q_lora_rank", "hidden_size"),
    "blk.attn_q_a_norm.weight": ("q_lora_rank",),
    "blk.attn_q_b.weight": (QUERIES, "q_lora_rank"),
    "blk.attn_kv_a_mqa.weight": (COMPRESSED, "hidden_size"),
    "blk.attn_kv_a_norm.weight": ("kv_lora_rank",),
    "blk.attn_k_b.weight": ("num_attention_heads", "kv_lora_rank", "qk_nope_head_dim"),
    "blk.attn_v_b.weight": ("num_attention_heads", "v_head_dim", "kv_lora_rank"),
    "blk.attn_output.weight": ("hidden_size", VALUES),
}
LOW_RANK_QUERIES = ("blk.attn_q_a.weight", "blk.attn_q_a_norm.weight", "blk.attn_q_b.weight")
EXPANSION, KEYS_PART, VALUES_PART = "kv_b_proj", "k_b_proj", "v_b_proj"  # transformers' name, llama.cpp's two


def get_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` names."""
    heads, rope_dim = config["num_attention_heads"], config["qk_rope_head_dim"]
    sizes = {name: config[name] for name in KEYS if config.get(name)}
    return sizes | {
        "num_attention_heads": heads,
        QUERIES: heads * (config["qk_nope_head_dim"] + rope_dim),
        VALUES: heads * config["v_head_dim"],
        COMPRESSED: config["kv_lora_rank"] + rope_dim,
    }


def get_absent(config: Config) -> tuple[str, ...]:
    """Which of `SHAPES` a model lacks: queries pass through a low rank, or do not."""
    return ("blk.attn_q.weight",) if config.get("q_lora_rank") else LOW_RANK_QUERIES


def split_expansion(name: str, tensor: LazyTensor, config: Config) -> dict[str, LazyTensor]:
    """Split `kv_b_proj` into the keys' part (heads, rank, key) and the values' part (heads, value, rank).

    A tensor of another shape is not split: what it should be is said of it as it is.
    """
    heads, key_dim, value_dim = (config[key] for key in ("num_attention_heads", "qk_nope_head_dim", "v_head_dim"))
    rank = config["kv_lora_rank"]
    if tensor.shape != (heads * (key_dim + value_dim), rank):
        return {name: tensor}
    expanded = LazyTensor((heads, key_dim + value_dim, rank), tensor.read, tensor.rows_at_once)
    return {
        name.replace(EXPANSION, KEYS_PART): transpose_matrices(slice_matrices(expanded, 0, key_dim)),
        name.replace(EXPANSION, VALUES_PART): slice_matrices(expanded, key_dim, key_dim + value_dim),
    }


def get_head_widths(config: Config) -> tuple[int, int]:
    """The widths of a key and of a value of the one head that llama.cpp attends to: they are compressed."""
    return config["kv_lora_rank"] + config["qk_rope_head_dim"], config["kv_lora_rank"]


def set_ranks(writer: GGUFWriter, config: Config) -> None:
    """Write the ranks, and the widths of the heads that the one which is attended to stands for."""
    if config.get("q_lora_rank"):
        writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length_mla(config["qk_nope_head_dim"] + config["qk_rope_head_dim"])
    writer.add_value_length_mla(config["v_head_dim"])
