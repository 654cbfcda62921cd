"""GPT-2: OpenAI's, and ruGPT-3."""

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, POSITIVE, TEXT

from impruver_gguf.architectures.base.architecture import Architecture, Config
from impruver_gguf.merging.merge import TiedModules
from impruver_gguf.weights.lazy_tensor import LazyTensor

CONV1D = (".c_attn", ".c_proj", ".c_fc")
KEYS = {
    **dict.fromkeys(("vocab_size", "n_positions", "n_ctx", "n_embd", "n_layer", "n_head", "n_inner"), COUNT),
    **dict.fromkeys(("tie_word_embeddings", "scale_attn_by_inverse_layer_idx", "scale_attn_weights"), FLAG),
    "layer_norm_epsilon": POSITIVE,
    "activation_function": TEXT,
}
WEIGHTS = {
    "token_embd.weight": ("vocab_size", "n_embd"),
    "position_embd.weight": ("n_positions", "n_embd"),
    "output.weight": ("vocab_size", "n_embd"),
    "output_norm.weight": ("n_embd",),
    "blk.attn_norm.weight": ("n_embd",),
    "blk.attn_qkv.weight": ("n_embd", "3 x n_embd"),
    "blk.attn_output.weight": ("n_embd", "n_embd"),
    "blk.ffn_norm.weight": ("n_embd",),
    "blk.ffn_up.weight": ("n_embd", "n_inner"),
    "blk.ffn_down.weight": ("n_inner", "n_embd"),
}
BIASED = ("output_norm.", "blk.")
SHAPES = WEIGHTS | {
    name.replace(".weight", ".bias"): sizes[-1:] for name, sizes in WEIGHTS.items() if name.startswith(BIASED)
}


def find_gpt2_contradiction(config: Config) -> str | None:
    """Name what in a configuration no GPT-2 can have."""
    width, heads = config["n_embd"], config["n_head"]
    return f"n_embd {width} is no multiple of n_head {heads}" if width % heads else None


def get_gpt2_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` names."""
    sizes = {name: config[name] for name in ("vocab_size", "n_positions", "n_embd")}
    return sizes | {"3 x n_embd": 3 * config["n_embd"], "n_inner": config.get("n_inner", 4 * config["n_embd"])}


def find_gpt2_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: another activation, another scale of the attention."""
    if config["activation_function"] not in ("gelu_new", "gelu_pytorch_tanh"):
        return f"activation_function {config['activation_function']}"
    if config.get("scale_attn_weights") is False:
        return "scale_attn_weights false"
    return "scale_attn_by_inverse_layer_idx" if config.get("scale_attn_by_inverse_layer_idx") else None


def set_gpt2_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters in llama.cpp's order."""
    writer.add_block_count(config["n_layer"])
    writer.add_context_length(config["n_positions"])  # the rows of its embeddings; transformers reads no n_ctx
    writer.add_embedding_length(config["n_embd"])
    writer.add_feed_forward_length(get_gpt2_sizes(config)["n_inner"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])
    writer.add_file_type(file_type)


def modify_gpt2_tensors(name: str, tensor: LazyTensor, config: Config) -> LazyTensor:
    """Transpose Conv1D's weights to (outputs, inputs), as every other layer has them."""
    if not name.endswith(tuple(f"{module}.weight" for module in CONV1D)):
        return tensor
    return LazyTensor(
        tensor.shape[::-1],
        lambda start, stop: tensor.read(0, tensor.row_count).T[start:stop],
        rows_at_once=tensor.shape[1],
    )


GPT2 = Architecture(
    name="gpt2",
    blocks="n_layer",
    tied=TiedModules("transformer.wte", "lm_head"),
    keys=KEYS,
    defaults={"vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12}
    | {"layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "tie_word_embeddings": True},
    find_contradiction=find_gpt2_contradiction,
    get_sizes=get_gpt2_sizes,
    shapes=SHAPES,
    find_unsupported=find_gpt2_unsupported,
    set_gguf_parameters=set_gpt2_gguf_parameters,
    modify_tensors=modify_gpt2_tensors,
    conv1d=CONV1D,
)
