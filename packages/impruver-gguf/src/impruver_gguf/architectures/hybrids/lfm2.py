"""LFM2: short convolutions in most layers, attention in the others; dense and with experts."""

from dataclasses import replace

from gguf import ExpertGatingFuncType, GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, POSITIVE, list_of

from impruver_gguf.architectures.base import decoder, experts
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors

CONVOLUTION, ATTENTION = "conv", "full_attention"
SHORT_CONVOLUTION = {
    "blk.shortconv.conv.weight": ("hidden_size", "1", "conv_L_cache"),
    "blk.shortconv.in_proj.weight": ("3 x hidden_size", "hidden_size"),
    "blk.shortconv.out_proj.weight": ("hidden_size", "hidden_size"),
}
EXPERTS = experts.SHAPES | {"blk.exp_probs_b.bias": ("num_experts",)}
EXPERT_NAMES = {"gate_proj": "w1", "down_proj": "w2", "up_proj": "w3"}  # in fused stacks → one by one
# What llama.cpp has in one way alone.
ONE_WAY = {"use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0, "tie_word_embeddings": True}
ATTENTION_SHAPES = decoder.ATTENTION | decoder.HEAD_NORMS
EMBEDDINGS = {
    "token_embd_norm.weight" if name == "output_norm.weight" else name: sizes
    for name, sizes in decoder.EMBEDDINGS.items()
}


def get_layer_types(config: Config) -> list[str]:
    """What each layer mixes positions with: by `layer_types`, `full_attn_idxs`, else attention."""
    if config.get("layer_types"):
        return config["layer_types"]
    layers = range(config["num_hidden_layers"])
    attending = config.get("full_attn_idxs", layers)
    return [ATTENTION if layer in attending else CONVOLUTION for layer in layers]


def get_feed_forward_size(config: Config) -> int:
    """The width between gate and down, which `block_auto_adjust_ff_dim` makes smaller than the configuration's."""
    size = config.get("block_ff_dim") or config["intermediate_size"]
    if not config["block_auto_adjust_ff_dim"]:
        return size
    size = int(config["block_ffn_dim_multiplier"] * int(2 * size / 3))
    step = config["block_multiple_of"]
    return -(-size // step) * step


def get_lfm2_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes name."""
    sizes = decoder.get_sizes(config) | {"1": 1, "conv_L_cache": config["conv_L_cache"]}
    return sizes | {"3 x hidden_size": 3 * config["hidden_size"], "intermediate_size": get_feed_forward_size(config)}


def get_lfm2_absent(config: Config, layer: int) -> set[str]:
    """A layer's tensors of the other kind."""
    attends = get_layer_types(config)[layer] == ATTENTION
    return {*(SHORT_CONVOLUTION if attends else ATTENTION_SHAPES)} - {"blk.attn_norm.weight"}


def find_lfm2_contradiction(config: Config) -> str | None:
    """Name what in a configuration no such model can have."""
    return decoder.find_wrong_layer_types(config, (CONVOLUTION, ATTENTION)) or decoder.find_contradiction(config)


def find_lfm2_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise or not load: biases, heads of another width, RoPE."""
    if config.get("conv_bias"):
        return "conv_bias"
    if config.get("tie_embedding", config["tie_word_embeddings"]) != config["tie_word_embeddings"]:
        return f"tie_embedding {config['tie_embedding']} where tie_word_embeddings is {config['tie_word_embeddings']}"
    if config["num_attention_heads"] * decoder.get_head_dim(config) != config["hidden_size"]:
        return f"head_dim {config['head_dim']}"
    if config["conv_L_cache"] < 2:
        return f"conv_L_cache {config['conv_L_cache']}"
    return decoder.find_unsupported_rope(config, ("default", "linear", "yarn"))


def write_decoder_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, the key and value heads layer by layer: 0 where one convolves."""
    kv_heads = decoder.get_kv_head_count(config)
    kv_heads = [kv_heads if kind == ATTENTION else 0 for kind in get_layer_types(config)]
    sizes = {"num_key_value_heads": kv_heads, "intermediate_size": get_feed_forward_size(config)}
    decoder.set_gguf_parameters(writer, config | sizes | {"rms_norm_eps": config["norm_eps"]}, file_type)


def set_lfm2_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters in llama.cpp's order."""
    write_decoder_parameters(writer, config, file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_shortconv_l_cache(config["conv_L_cache"])


def find_lfm2_moe_contradiction(config: Config) -> str | None:
    """Name what in a configuration no such mixture of experts can have."""
    if not config.get("layer_types"):
        return "layer_types is not set"
    return experts.find_expert_contradiction(config) or find_lfm2_contradiction(config)


def find_lfm2_moe_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise or not load: that of the dense model, other weights of experts."""
    other = next((name for name, value in ONE_WAY.items() if config[name] != value), None)
    return f"{other} {config[other]}" if other else find_lfm2_unsupported(config)


def get_lfm2_moe_absent(config: Config, layer: int) -> set[str]:
    """A layer's tensors of the other kinds: the first `num_dense_layers` have no experts."""
    feed_forward = EXPERTS if layer < config["num_dense_layers"] else decoder.FEED_FORWARD
    return get_lfm2_absent(config, layer) | {*feed_forward} - {"blk.ffn_norm.weight"}


def prepare_lfm2_moe_tensors(tensors: Tensors, _config: object = None) -> dict[str, LazyTensor]:
    """Stack the experts, under the names that gguf's table has; the router's bias too."""
    stacked = experts.split_fused_experts(experts.stack_experts(tensors, tuple(EXPERT_NAMES.values())))
    prepared = {}
    for name, tensor in stacked.items():
        start, found, projection = name.removesuffix(".weight").rpartition(".experts.")
        if found:
            name = f"{start.removeprefix('model.')}.experts.{EXPERT_NAMES.get(projection, projection)}.weight"
        prepared[name.replace(".expert_bias", ".expert_bias.bias")] = tensor
    return prepared


def set_lfm2_moe_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters of the dense model and the experts', in llama.cpp's order."""
    write_decoder_parameters(writer, config, file_type)
    writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_leading_dense_block_count(config["num_dense_layers"])
    writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_shortconv_l_cache(config["conv_L_cache"])


LFM2 = decoder.make_architecture(
    name="lfm2",
    keys=decoder.KEYS
    | dict.fromkeys(("block_ff_dim", "block_multiple_of", "conv_L_cache"), COUNT)
    | dict.fromkeys(("block_auto_adjust_ff_dim", "conv_bias", "tie_embedding"), FLAG)
    | dict.fromkeys(("block_ffn_dim_multiplier", "norm_eps"), POSITIVE)
    | {"full_attn_idxs": list_of(INDEX)},
    defaults={"vocab_size": 65536, "hidden_size": 2560, "intermediate_size": 12288, "num_hidden_layers": 32}
    | {"num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 128000, "norm_eps": 1e-5}
    | {"tie_word_embeddings": True, "rope_theta": 1e6, "conv_L_cache": 3, "hidden_act": "silu"}
    | {"block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True},
    shapes=EMBEDDINGS | ATTENTION_SHAPES | SHORT_CONVOLUTION | decoder.FEED_FORWARD,
    reshaped={"blk.shortconv.conv.weight": ("hidden_size", "conv_L_cache")},
    find_contradiction=find_lfm2_contradiction,
    get_sizes=get_lfm2_sizes,
    get_absent=get_lfm2_absent,
    find_unsupported=find_lfm2_unsupported,
    set_gguf_parameters=set_lfm2_gguf_parameters,
)
LFM2_MOE = replace(
    LFM2,
    name="lfm2moe",
    keys=LFM2.keys | experts.KEYS | {"num_dense_layers": INDEX, "use_expert_bias": FLAG},
    defaults=LFM2.defaults
    | {"hidden_size": 2048, "intermediate_size": 7168, "moe_intermediate_size": 1792, "block_auto_adjust_ff_dim": False}
    | {"num_dense_layers": 2, "num_experts": 32, "num_experts_per_tok": 4}
    | ONE_WAY,
    shapes={name: sizes for name, sizes in (LFM2.shapes | EXPERTS).items() if name != "output.weight"},
    find_contradiction=find_lfm2_moe_contradiction,
    get_absent=get_lfm2_moe_absent,
    find_unsupported=find_lfm2_moe_unsupported,
    set_gguf_parameters=set_lfm2_moe_gguf_parameters,
    prepare_tensors=prepare_lfm2_moe_tensors,
)
