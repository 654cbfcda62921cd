"""LFM2: short convolutions in most layers, attention in the others."""

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, POSITIVE, list_of

from impruver_gguf.architectures import decoder
from impruver_gguf.architectures.architecture import Config

CONVOLUTION, ATTENTION = "conv", "full_attention"
SHORT_CONVOLUTION = {
    "blk.shortconv.conv.weight": ("hidden_size", "1", "conv_L_cache"),
    "blk.shortconv.in_proj.weight": ("3 x hidden_size", "hidden_size"),
    "blk.shortconv.out_proj.weight": ("hidden_size", "hidden_size"),
}
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


def set_lfm2_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters, the number of key and value heads for each layer: 0 where it convolves."""
    kv_heads = decoder.get_kv_head_count(config)
    kv_heads = [kv_heads if kind == ATTENTION else 0 for kind in get_layer_types(config)]
    sizes = {"num_key_value_heads": kv_heads, "intermediate_size": get_feed_forward_size(config)}
    decoder.set_gguf_parameters(writer, config | sizes | {"rms_norm_eps": config["norm_eps"]}, file_type)
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
