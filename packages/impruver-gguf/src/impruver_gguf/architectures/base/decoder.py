"""What Llama-like decoders share: keys of config.json, RoPE, sizes, shapes, hyperparameters in llama.cpp's order."""

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial

import numpy as np
from gguf import GGUFWriter, RopeScalingType
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, NUMBER, POSITIVE, TEXT, list_of

from impruver_gguf.architectures.base.architecture import Architecture, Config
from impruver_gguf.architectures.base.experts import get_expert_sizes, write_expert_counts
from impruver_gguf.architectures.base.float32_power import compute_power
from impruver_gguf.merging.merge import PREDICTION, TiedModules
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, has_same_values

ROPE_KEYS = {
    "rope_type": TEXT,
    "type": TEXT,
    "original_max_position_embeddings": COUNT,
    **dict.fromkeys(("rope_theta", "factor", "low_freq_factor", "high_freq_factor"), POSITIVE),
    **dict.fromkeys(("extrapolation_factor", "attention_factor", "attn_factor", "beta_fast", "beta_slow"), NUMBER),
    **dict.fromkeys(("long_factor", "short_factor"), list_of(NUMBER)),
    "partial_rotary_factor": POSITIVE,
    "mrope_section": list_of(INDEX),
}
# What else may stand beside yarn, and the values for which llama.cpp computes what transformers does.
YARN = {
    **dict.fromkeys(("attn_factor", "mscale_all_dim"), None),
    "beta_fast": 32,
    "beta_slow": 1,
    "truncate": True,
}
SIZES = ("vocab_size", "hidden_size", "intermediate_size")
KEYS = {
    **dict.fromkeys((*SIZES, "num_hidden_layers", "max_position_embeddings"), COUNT),
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads", "head_dim"), COUNT),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "rope_theta", "partial_rotary_factor"), POSITIVE),
    **dict.fromkeys(("tie_word_embeddings", "attention_bias", "mlp_bias", "is_causal", "use_sliding_window"), FLAG),
    **dict.fromkeys(("sliding_window", "max_window_layers"), INDEX),
    "hidden_act": TEXT,
    "layer_types": list_of(TEXT),
    "rope_parameters": ROPE_KEYS,
    "rope_scaling": ROPE_KEYS,
}
TIED = TiedModules("model.embed_tokens", "lm_head")
QUERIES, KEY_VALUES = "num_attention_heads x head_dim", "num_key_value_heads x head_dim"
EMBEDDINGS = {
    "token_embd.weight": ("vocab_size", "hidden_size"),
    "output.weight": ("vocab_size", "hidden_size"),
    "output_norm.weight": ("hidden_size",),
}
ATTENTION = {
    "blk.attn_norm.weight": ("hidden_size",),
    "blk.attn_q.weight": (QUERIES, "hidden_size"),
    "blk.attn_k.weight": (KEY_VALUES, "hidden_size"),
    "blk.attn_v.weight": (KEY_VALUES, "hidden_size"),
    "blk.attn_output.weight": ("hidden_size", QUERIES),
}
ATTENTION_BIASES = {
    name.replace(".weight", ".bias"): sizes[:1] for name, sizes in ATTENTION.items() if name != "blk.attn_norm.weight"
}
HEAD_NORMS = {"blk.attn_q_norm.weight": ("head_dim",), "blk.attn_k_norm.weight": ("head_dim",)}
FEED_FORWARD = {
    "blk.ffn_norm.weight": ("hidden_size",),
    "blk.ffn_gate.weight": ("intermediate_size", "hidden_size"),
    "blk.ffn_up.weight": ("intermediate_size", "hidden_size"),
    "blk.ffn_down.weight": ("hidden_size", "intermediate_size"),
}
DEFAULTS = {  # transformers', for most families
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "rms_norm_eps": 1e-6,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}


def get_rope(config: Config) -> Config:
    """RoPE's parameters under the names of transformers 5, wherever a config.json has them."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rope = {name: value for name, value in rope.items() if value is not None}
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("partial_rotary_factor", config.get("partial_rotary_factor", 1.0))
    if rope["rope_type"] == "llama3":
        rope.setdefault("original_max_position_embeddings", config["max_position_embeddings"])
    return rope


def find_unsupported_rope(config: Config, supported: tuple[str, ...], partial_rotary: bool = False) -> str | None:
    """Name what of RoPE llama.cpp would compute otherwise than transformers, given what it supports."""
    rope = get_rope(config)
    if rope["rope_type"] not in supported:
        return f"rope_type {rope['rope_type']}"
    if rope["partial_rotary_factor"] != 1 and not partial_rotary:
        return "partial_rotary_factor"
    return _find_unsupported_yarn(rope) if rope["rope_type"] == "yarn" else None


def _find_unsupported_yarn(rope: Config) -> str | None:
    odd = next((name for name, usual in YARN.items() if rope.get(name, usual) != usual), None)
    # llama.cpp always multiplies by this, whatever the file says.
    computed = 0.1 * math.log(max(rope.get("factor", 1.0), 1.0)) + 1
    if not math.isclose(rope.get("attention_factor", computed), computed, rel_tol=1e-5):
        odd = "attention_factor"
    return f"{odd} {rope[odd]} of yarn" if odd else None


def write_rope_scaling(writer: GGUFWriter, rope: Config) -> None:
    """Write how positions beyond the context of the first training are scaled, where GGUF has keys for it."""
    kind = {"linear": RopeScalingType.LINEAR, "yarn": RopeScalingType.YARN}.get(rope["rope_type"])
    if kind is None or rope.get("factor") is None:
        return
    writer.add_rope_scaling_type(kind)
    writer.add_rope_scaling_factor(rope["factor"])
    if kind is RopeScalingType.YARN:
        writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        rope = {"attention_factor": rope.get("attn_factor")} | rope
        for name, add in (
            ("extrapolation_factor", writer.add_rope_scaling_yarn_ext_factor),
            ("attention_factor", writer.add_rope_scaling_yarn_attn_factor),
            ("beta_fast", writer.add_rope_scaling_yarn_beta_fast),
            ("beta_slow", writer.add_rope_scaling_yarn_beta_slow),
        ):
            if rope.get(name) is not None:
                add(rope[name])


def write_mrope_sections(writer: GGUFWriter, sections: Sequence[int]) -> None:
    """Write how many of RoPE's pairs turn with an image's time, height and width; in texts the three are one."""
    writer.add_rope_dimension_sections([*sections, 0, 0, 0, 0][:4])


def find_unturned_pairs(rope: Config, default: Sequence[int], pairs: int) -> str | None:
    """Name sections that leave out pairs which transformers turns in a text all the same, and llama.cpp does not."""
    sections = rope.get("mrope_section", default)
    turned = [pair % sum(sections) < 3 * sections[pair % sum(sections) % 3] for pair in range(pairs) if any(sections)]
    return None if turned and all(turned) else f"mrope_section {sections} for {pairs} pairs"


def make_factors_tensor(factors: Iterable[float]) -> LazyTensor:
    """Make the tensor of the factors (head_dim / 2,) by which RoPE's frequencies are divided."""
    values = np.array(list(factors), np.float32)
    return LazyTensor(values.shape, lambda start, stop: values[start:stop])


def compute_llama3_factors(rope: Config, head_dim: int) -> Iterator[np.float32]:
    """Yield by what Llama 3.x divides each of RoPE's frequencies, as llama.cpp's script computes it with torch.

    A number divided by a tensor is there the tensor's reciprocal times that number, and numbers are float32 beside one.
    """
    one, exponents = np.float32(1), np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    factor, context = rope.get("factor", 8.0), rope.get("original_max_position_embeddings", 8192)
    low, high = rope.get("low_freq_factor", 1.0), rope.get("high_freq_factor", 4.0)
    for frequency in one / compute_power(rope["rope_theta"], exponents):
        wavelength = one / frequency * np.float32(2 * math.pi)
        if wavelength < np.float32(context / high):
            yield one
        elif wavelength > np.float32(context / low):
            yield np.float32(factor)
        else:
            smooth = (one / wavelength * np.float32(context) - np.float32(low)) / np.float32(high - low)
            yield one / ((one - smooth) / np.float32(factor) + smooth)


def get_head_dim(config: Config) -> int:
    """The width of an attention head."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def get_kv_head_count(config: Config) -> int:
    """The number of key and value heads, which several query heads share.

    `set_gguf_parameters` also takes a list: one number for each layer, 0 where it has no attention.
    """
    return config.get("num_key_value_heads", config["num_attention_heads"])


def get_sizes(config: Config) -> dict[str, int]:
    """The sizes that the shapes of this module name."""
    head_dim = get_head_dim(config)
    sizes = {name: config[name] for name in SIZES if name in config} | {"head_dim": head_dim}
    heads, kv_heads = config["num_attention_heads"], get_kv_head_count(config)
    return sizes | {QUERIES: heads * head_dim, KEY_VALUES: kv_heads * head_dim} | get_expert_sizes(config)


def find_contradiction(config: Config) -> str | None:
    """Name what in a configuration no decoder can have."""
    heads, kv_heads, head_dim = config["num_attention_heads"], get_kv_head_count(config), get_head_dim(config)
    if heads % kv_heads:
        return f"num_attention_heads {heads} is no multiple of num_key_value_heads {kv_heads}"
    if not config.get("head_dim") and config["hidden_size"] % heads:
        return f"hidden_size {config['hidden_size']} is no multiple of num_attention_heads {heads}"
    rope = get_rope(config)
    if rope["rope_type"] == "yarn" and "original_max_position_embeddings" not in rope:
        return "rope_type yarn comes without original_max_position_embeddings"
    return f"head_dim {head_dim} is odd, and RoPE turns pairs" if head_dim % 2 else None


def find_unsupported(config: Config, activation: str = "silu") -> str | None:
    """Name what llama.cpp would compute otherwise than transformers in any decoder."""
    if config.get("is_causal") is False:
        return "is_causal false"
    return f"hidden_act {config['hidden_act']}" if config["hidden_act"] != activation else None


def find_other_head_dim(config: Config) -> str | None:
    """Name heads of another width than the model's makes them, which llama.cpp refuses to load in some families."""
    head_dim = get_head_dim(config)
    return f"head_dim {head_dim}" if config["num_attention_heads"] * head_dim != config["hidden_size"] else None


def find_wrong_layer_types(config: Config, known: Collection[str]) -> str | None:
    """Name what is wrong with `layer_types`, where there is one: another number than of layers, an unknown type."""
    types = config.get("layer_types")
    if types and len(types) != config["num_hidden_layers"]:
        return f"layer_types holds {len(types)} types, and num_hidden_layers is {config['num_hidden_layers']}"
    unknown = sorted({*(types or ())} - {*known})
    return f"layer_types holds {unknown[0]}, and may hold {', '.join(known)}" if unknown else None


def has_sliding_window(config: Config) -> bool:
    """Whether some layers attend to a window only, which llama.cpp does not know of these families."""
    if not config.get("use_sliding_window") or config.get("sliding_window") is None:
        return False
    if config.get("layer_types"):
        return "sliding_attention" in config["layer_types"]
    return config.get("max_window_layers", config["num_hidden_layers"]) < config["num_hidden_layers"]


def set_gguf_parameters(
    writer: GGUFWriter,
    config: Config,
    file_type: int,
    local_theta: float | None = None,
    head_widths: tuple[int, int] | None = None,
) -> None:
    """Write what llama.cpp's converter writes of every decoder; the head's width where the configuration names it.

    `head_widths` are those of keys and values, where they are others than `head_dim`.
    """
    rope = get_rope(config)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    if config.get("intermediate_size"):
        writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(get_kv_head_count(config))
    write_rope_scaling(writer, rope)
    if "mrope_section" in rope:
        write_mrope_sections(writer, rope["mrope_section"])
    writer.add_rope_freq_base(rope["rope_theta"])
    if local_theta is not None:
        writer.add_rope_freq_base_swa(local_theta)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    if "layer_norm_eps" in config:
        writer.add_layer_norm_eps(config["layer_norm_eps"])
    write_expert_counts(writer, config)
    if head_widths or config.get("head_dim"):
        key_width, value_width = head_widths or (config["head_dim"], config["head_dim"])
        writer.add_key_length(key_width)
        writer.add_value_length(value_width)
    writer.add_file_type(file_type)


def drop_tied_output(tensors: Tensors, config: Config) -> Tensors:
    """Leave out an output that is a copy of the embeddings which it is tied to, as some of llama.cpp's classes do."""
    embedding, output = (f"{module}.weight" for module in TIED)
    if not config["tie_word_embeddings"] or output not in tensors or embedding not in tensors:
        return tensors
    if not has_same_values(tensors[embedding], tensors[output]):
        return tensors
    return {name: tensor for name, tensor in tensors.items() if name != output}


def drop_prediction_layers(tensors: Tensors, config: Config) -> Tensors:
    """Leave out layers after the last that predict further tokens, as transformers does; others stay, and are told."""
    starts = (name.removesuffix(PREDICTION) for name in tensors if name.endswith(f".{PREDICTION}"))
    dropped = tuple(start for start in starts if int(re.sub(r"\D", "", start)) >= config["num_hidden_layers"])
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}


# Makes an `Architecture` with what decoders have in common.
make_architecture = partial(
    Architecture,
    blocks="num_hidden_layers",
    tied=TIED,
    keys=KEYS,
    find_contradiction=find_contradiction,
    get_sizes=get_sizes,
    set_gguf_parameters=set_gguf_parameters,
)
