"""DeepSeek V2 and V3 (GigaChat 3 too): latent attention; dense layers first, then experts, some of which are shared."""

from dataclasses import replace

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, POSITIVE, TEXT

from impruver_gguf.architectures.base import decoder, experts, mla
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors

SHARED_SIZE = "n_shared_experts x moe_intermediate_size"
DENSE = {name: sizes for name, sizes in decoder.FEED_FORWARD.items() if name != "blk.ffn_norm.weight"}
MIXTURE = {name: sizes for name, sizes in experts.SHAPES.items() if name != "blk.ffn_norm.weight"} | {
    "blk.ffn_gate_shexp.weight": (SHARED_SIZE, "hidden_size"),
    "blk.ffn_up_shexp.weight": (SHARED_SIZE, "hidden_size"),
    "blk.ffn_down_shexp.weight": ("hidden_size", SHARED_SIZE),
}
ROUTER_BIAS = {"blk.exp_probs_b.bias": ("num_experts",)}
SHAPES = decoder.EMBEDDINGS | mla.SHAPES | decoder.FEED_FORWARD | MIXTURE
# Where llama.cpp knows queries that pass through no low rank: numbers of layers, or one with a size of vocabulary.
PLAIN_QUERIES, PLAIN_QUERIES_WITH_VOCAB = (26, 27), (48, 128256)
ROPE_KEYS = decoder.ROPE_KEYS | dict.fromkeys(("mscale", "mscale_all_dim"), POSITIVE)
KEYS = (
    decoder.KEYS
    | mla.KEYS
    | experts.KEYS
    | {"n_shared_experts": COUNT, "rope_interleave": FLAG, "topk_method": TEXT}
    | {"rope_parameters": ROPE_KEYS, "rope_scaling": ROPE_KEYS}
)


def find_deepseek_contradiction(config: Config) -> str | None:
    """Name what in a configuration no DeepSeek can have."""
    heads, count, groups = config["num_attention_heads"], experts.get_expert_count(config), config.get("n_group") or 1
    if config.get("num_key_value_heads", heads) != heads:
        return f"num_key_value_heads {config['num_key_value_heads']} is not num_attention_heads {heads}"
    if "num_experts_per_tok" not in config:
        return "num_experts_per_tok is not set"
    if count % groups:
        return f"n_routed_experts {count} is no multiple of n_group {groups}"
    rope_heads = config | {"head_dim": config["qk_rope_head_dim"]}
    return experts.find_expert_contradiction(config) or decoder.find_contradiction(rope_heads)


def get_deepseek_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` names."""
    sizes = {name: config[name] for name in decoder.SIZES} | mla.get_sizes(config) | experts.get_expert_sizes(config)
    return sizes | {SHARED_SIZE: config["n_shared_experts"] * config["moe_intermediate_size"]}


def get_deepseek_absent(config: Config, layer: int) -> tuple[str, ...]:
    """What of `SHAPES` a layer lacks: the first ones have no experts, the others nothing else."""
    is_dense = layer < config["first_k_dense_replace"]
    return (*mla.get_absent(config), *((*MIXTURE, *ROUTER_BIAS) if is_dense else DENSE))


def find_unsupported_groups(config: Config) -> str | None:
    """Name what of groups of experts llama.cpp would not load: it takes the best two of each, and drops some groups."""
    groups, count = config.get("n_group") or 1, experts.get_expert_count(config)
    if groups == 1:
        return None
    if count < 2 * groups:
        return f"n_group {groups} of {count} experts"
    used = config.get("topk_group") or groups
    return f"topk_group {used} of n_group {groups}" if used >= groups else None


def find_unsupported_attention(config: Config) -> str | None:
    """Name what of latent attention and its RoPE llama.cpp would compute otherwise, or not load."""
    rope, layers = decoder.get_rope(config), config["num_hidden_layers"]
    is_plain = layers in PLAIN_QUERIES or (layers, config["vocab_size"]) == PLAIN_QUERIES_WITH_VOCAB
    if bool(config.get("q_lora_rank")) == is_plain:
        return f"q_lora_rank {config.get('q_lora_rank')} and num_hidden_layers {layers}"
    if rope["rope_type"] == "yarn" and rope.get("mscale", 0) != rope.get("mscale_all_dim"):
        return f"mscale {rope.get('mscale')} and mscale_all_dim {rope.get('mscale_all_dim')} of yarn"
    known = {name: value for name, value in rope.items() if name != "mscale_all_dim"}
    return decoder.find_unsupported_rope(config | {"rope_parameters": known}, ("default", "yarn"))


def find_deepseek_unsupported(config: Config, scoring: str) -> str | None:
    """Name what llama.cpp would compute otherwise, or not load, in a model whose router has this function."""
    biased = next((name for name in ("attention_bias", "mlp_bias") if config.get(name)), None)
    if biased:
        return biased
    if config.get("scoring_func", scoring) != scoring:
        return f"scoring_func {config['scoring_func']}"
    return find_unsupported_attention(config) or find_unsupported_groups(config) or decoder.find_unsupported(config)


def find_v2_unsupported(config: Config) -> str | None:
    """Name that, or groups of experts: V2 judges them by their best expert, llama.cpp by their best two."""
    if (config.get("n_group") or 1) > 1:
        return f"n_group {config['n_group']}"
    if config.get("norm_topk_prob"):
        return "norm_topk_prob"
    if config["topk_method"] not in ("greedy", "group_limited_greedy"):
        return f"topk_method {config['topk_method']}"
    return find_deepseek_unsupported(config, "softmax")


def find_v3_unsupported(config: Config) -> str | None:
    """Name that, or RoPE that turns halves: llama.cpp's turns neighbours."""
    if not config["rope_interleave"]:
        return "rope_interleave false"
    return find_deepseek_unsupported(config, "sigmoid")


def set_deepseek_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters: for llama.cpp it has one key and value head, which all queries share."""
    one_head = config | {"num_key_value_heads": 1}
    decoder.set_gguf_parameters(writer, one_head, file_type, head_widths=mla.get_head_widths(config))
    writer.add_leading_dense_block_count(config["first_k_dense_replace"])
    writer.add_vocab_size(config["vocab_size"])
    mla.set_ranks(writer, config)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_expert_shared_count(config["n_shared_experts"])
    writer.add_expert_weights_scale(config["routed_scaling_factor"])
    if config["norm_topk_prob"]:
        writer.add_expert_weights_norm(True)
    writer.add_rope_dimension_count(config["qk_rope_head_dim"])
    scale = decoder.get_rope(config).get("mscale_all_dim")
    if scale is not None:
        writer.add_rope_scaling_yarn_log_mul(0.1 * scale)


def set_v3_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write these with V3's scoring function, whether config.json names it or not: llama.cpp takes V2's else."""
    set_deepseek_gguf_parameters(writer, config | {"scoring_func": "sigmoid"}, file_type)


def prepare_deepseek_tensors(tensors: Tensors, config: Config) -> dict[str, LazyTensor]:
    """Stack the experts and split the latent attention's expansion."""
    prepared: dict[str, LazyTensor] = {}
    for name, tensor in experts.prepare_experts(decoder.drop_tied_output(tensors, config)).items():
        if name.endswith(f".{mla.EXPANSION}.weight"):
            prepared |= mla.split_expansion(name, tensor, config)
        else:
            prepared[name.replace(".e_score_correction_bias", ".e_score_correction.bias")] = tensor
    return prepared


DEEPSEEK2 = decoder.make_architecture(
    name="deepseek2",
    keys=KEYS,
    defaults=decoder.DEFAULTS
    | {"vocab_size": 102400, "intermediate_size": 11008, "max_position_embeddings": 2048}
    | {"first_k_dense_replace": 0, "kv_lora_rank": 512, "q_lora_rank": 1536, "v_head_dim": 128}
    | {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
    | {"n_routed_experts": 64, "n_shared_experts": 2, "moe_intermediate_size": 1407}
    | {"routed_scaling_factor": 1.0, "norm_topk_prob": False, "topk_method": "greedy"},
    nullable=("q_lora_rank",),
    shapes=SHAPES,
    find_contradiction=find_deepseek_contradiction,
    get_sizes=get_deepseek_sizes,
    get_absent=get_deepseek_absent,
    find_unsupported=find_v2_unsupported,
    drop_unused=decoder.drop_prediction_layers,
    prepare_tensors=prepare_deepseek_tensors,
    set_gguf_parameters=set_deepseek_gguf_parameters,
)
DEEPSEEK3 = replace(
    DEEPSEEK2,
    defaults=DEEPSEEK2.defaults
    | {"vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "num_hidden_layers": 61}
    | {"num_attention_heads": 128, "max_position_embeddings": 4096, "first_k_dense_replace": 3, "n_routed_experts": 256}
    | {"n_shared_experts": 1, "moe_intermediate_size": 2048, "routed_scaling_factor": 2.5, "norm_topk_prob": True}
    | {"n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "rope_interleave": True},
    shapes=SHAPES | ROUTER_BIAS,
    find_unsupported=find_v3_unsupported,
    set_gguf_parameters=set_v3_gguf_parameters,
)
