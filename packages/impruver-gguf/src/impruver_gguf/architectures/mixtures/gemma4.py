"""Gemma 4: heads of two widths, keys and values that later layers share, inputs for each layer, experts beside the MLP.

Layers with a window and those that attend to all differ in the width of their heads, in the number of key and value
heads, and in RoPE, which turns a part of the wide heads only.
"""

from collections.abc import Collection

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, INDEX, OBJECT, POSITIVE, TEXT

from impruver_gguf.architectures.base import decoder, experts
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.dense import gemma3
from impruver_gguf.architectures.dense.gemma3 import FULL, FULL_EVERY, SLIDING
from impruver_gguf.vocab.gemma4_vocab import build_gemma4_vocab, write_gemma4_vocab
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors

SHARED = ("blk.attn_k.weight", "blk.attn_k_norm.weight", "blk.attn_v.weight")  # what later layers take from earlier
LAYER_INPUTS = {
    "per_layer_token_embd.weight": ("vocab_size_per_layer_input", "num_hidden_layers x hidden_size_per_layer_input"),
    "per_layer_model_proj.weight": ("num_hidden_layers x hidden_size_per_layer_input", "hidden_size"),
    "per_layer_proj_norm.weight": ("hidden_size_per_layer_input",),
    "blk.inp_gate.weight": ("hidden_size_per_layer_input", "hidden_size"),
    "blk.proj.weight": ("hidden_size", "hidden_size_per_layer_input"),
    "blk.post_norm.weight": ("hidden_size",),
}
EXPERTS = {
    "blk.ffn_gate_inp.weight": ("num_experts", "hidden_size"),
    "blk.ffn_gate_inp.scale": ("hidden_size",),
    "blk.ffn_gate_up_exps.weight": ("num_experts", "2 x moe_intermediate_size", "hidden_size"),
    "blk.ffn_down_exps.weight": ("num_experts", "hidden_size", "moe_intermediate_size"),
    "blk.ffn_down_exps.scale": ("num_experts",),
    "blk.pre_ffw_norm_2.weight": ("hidden_size",),
    "blk.post_ffw_norm_1.weight": ("hidden_size",),
    "blk.post_ffw_norm_2.weight": ("hidden_size",),
}
SHAPES = (
    decoder.EMBEDDINGS
    | decoder.ATTENTION
    | decoder.HEAD_NORMS
    | gemma3.POST_NORMS
    | decoder.FEED_FORWARD
    | {"blk.layer_output_scale.weight": ("1",)}
    | LAYER_INPUTS
    | EXPERTS
)
NO_ROTATION = 1e30  # divides the frequency of a pair that RoPE does not turn
WIDTHS = ("head_dim", "num_key_value_heads")  # what full attention has of its own
RENAMED = {".router.scale": ".router.proj.scale", ".router.per_expert_scale": ".experts.down_proj.scale"}


def get_layer_types(config: Config) -> list[str]:
    """The layers' types; the last one attends to all whatever `layer_types` says, as in transformers."""
    count = config["num_hidden_layers"]
    types = config.get("layer_types") or [FULL if (layer + 1) % FULL_EVERY == 0 else SLIDING for layer in range(count)]
    return [*types[:-1], FULL]


def get_full_attention(config: Config) -> Config:
    """`WIDTHS` of the layers that attend to all: of `per_layer_config`, or of the keys that the hub's files have."""
    layers = config.get("per_layer_config")
    if layers is not None:
        full = [layers.get(str(layer), {}) for layer, kind in enumerate(get_layer_types(config)) if kind == FULL]
        own = full[0]
    else:
        own = {"head_dim": config.get("global_head_dim", 512)}
        if config["attention_k_eq_v"]:
            own["num_key_value_heads"] = config.get("num_global_key_value_heads")
    return {name: own.get(name) or config[name] for name in WIDTHS}


def is_shared(config: Config, layer: int) -> bool:
    """Whether a layer takes keys and values from an earlier one."""
    return layer >= config["num_hidden_layers"] - config["num_kv_shared_layers"]


def get_gemma4_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` names, apart from those that differ by layer."""
    sizes, width = decoder.get_sizes(config), config["hidden_size_per_layer_input"]
    sizes |= {name: config[name] for name in ("vocab_size_per_layer_input", "hidden_size_per_layer_input")} | {"1": 1}
    sizes["num_hidden_layers x hidden_size_per_layer_input"] = config["num_hidden_layers"] * width
    count, inner = config.get("num_experts") or 0, config.get("moe_intermediate_size") or 0
    sizes |= {"num_experts": count, "moe_intermediate_size": inner, "2 x moe_intermediate_size": 2 * inner}
    return sizes


def get_gemma4_layer_sizes(config: Config, layer: int) -> dict[str, int]:
    """Those that differ by layer."""
    full = get_layer_types(config)[layer] == FULL
    sizes = decoder.get_sizes(config | (get_full_attention(config) if full else {}))
    if config["use_double_wide_mlp"] and is_shared(config, layer):
        sizes["intermediate_size"] *= 2
    return sizes


def get_gemma4_optional(config: Config) -> list[str]:
    """What only some Gemma 4 have: inputs for each layer, experts, and the scale of a layer's output."""
    names = [] if config["hidden_size_per_layer_input"] else [*LAYER_INPUTS]
    return [*names, *([] if config["enable_moe_block"] else EXPERTS), "blk.layer_output_scale.weight"]


def get_gemma4_absent(config: Config, layer: int) -> Collection[str]:
    """Keys and values where they are shared, values where keys stand for them."""
    if is_shared(config, layer):
        return SHARED
    return SHARED[2:] if config["attention_k_eq_v"] and get_layer_types(config)[layer] == FULL else ()


def get_gemma4_unused(config: Config, layer: int) -> Collection[str]:
    """Keys and values that files on the hub hold nevertheless."""
    return SHARED if is_shared(config, layer) else ()


def find_gemma4_contradiction(config: Config) -> str | None:
    """Name what no Gemma 4 can have."""
    wrong = decoder.find_wrong_layer_types(config, (FULL, SLIDING))
    if wrong or config["num_kv_shared_layers"] >= config["num_hidden_layers"]:
        return wrong or f"num_kv_shared_layers {config['num_kv_shared_layers']} are all layers"
    for layer, own in (config.get("per_layer_config") or {}).items():
        if not isinstance(own, dict) or any(not COUNT.holds(own[name]) for name in WIDTHS if own.get(name) is not None):
            return f"per_layer_config.{layer} is nothing that a layer can have"
    if config["enable_moe_block"]:
        for name in ("num_experts", "top_k_experts", "moe_intermediate_size"):
            if not config.get(name):
                return f"enable_moe_block is set and {name} is not"
        if config["top_k_experts"] > config["num_experts"]:
            return f"top_k_experts {config['top_k_experts']} is more than num_experts {config['num_experts']}"
    for own in ({}, get_full_attention(config)):
        wrong = wrong or decoder.find_contradiction({**config, **own, "rope_parameters": {}})
    return wrong


def find_gemma4_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: activation, RoPE, biases, widths by layer, shared keys."""
    reason = decoder.find_unsupported(config | {"hidden_act": config["hidden_activation"]}, gemma3.GELU)
    reason = reason or ("attention_bias" if config.get("attention_bias") else None)
    if config.get("use_bidirectional_attention") == "all":
        reason = reason or "use_bidirectional_attention all"
    if config["hidden_size_per_layer_input"] and config["vocab_size_per_layer_input"] != config["vocab_size"]:
        reason = reason or f"vocab_size_per_layer_input other than vocab_size {config['vocab_size']}"
    return reason or _find_other_rope(config) or _find_other_widths(config) or _find_other_sharing(config)


def _find_other_rope(config: Config) -> str | None:
    for kind, wanted in ((FULL, "proportional"), (SLIDING, "default")):
        rope = config["rope_parameters"].get(kind) or {}
        if rope.get("rope_type", "default") != wanted or "rope_theta" not in rope:
            return f"rope_type {rope.get('rope_type')} of {kind}"
    if config["rope_parameters"][FULL].get("factor", 1) != 1:
        return f"factor of RoPE of {FULL}"
    return None if "partial_rotary_factor" in config["rope_parameters"][FULL] else f"RoPE of {FULL} without its share"


def _find_other_widths(config: Config) -> str | None:
    """Name per_layer_config where it gives a layer other widths than its type has."""
    layers, full = config.get("per_layer_config") or {}, get_full_attention(config)
    for index, kind in enumerate(get_layer_types(config) if layers else ()):
        own = {name: value for name, value in layers.get(str(index), {}).items() if value is not None}
        usual = full if kind == FULL else config
        if any(own.get(name, config[name]) != usual[name] for name in WIDTHS) or own.keys() - {*WIDTHS}:
            return f"per_layer_config of its own for layer {index}"
    return None


def _find_other_sharing(config: Config) -> str | None:
    """llama.cpp has layers take keys and values from the last two that have them: the sliding, then the full one."""
    if not config["num_kv_shared_layers"]:
        return None
    first = config["num_hidden_layers"] - config["num_kv_shared_layers"]
    kinds = get_layer_types(config)[max(0, first - 2) : first]
    return None if kinds == [SLIDING, FULL] else f"keys and values shared from layer {first} on, after {kinds}"


def set_gemma4_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, lists of what differs by layer, then what Gemma 4 has of its own."""
    full, types = get_full_attention(config), get_layer_types(config)
    ropes, layers = config["rope_parameters"], range(config["num_hidden_layers"])
    written = config | {"head_dim": full["head_dim"], "rope_parameters": ropes[FULL]}
    written["num_experts_per_tok"] = config.get("top_k_experts")
    if config["use_double_wide_mlp"]:
        written["intermediate_size"] = [get_gemma4_layer_sizes(config, i)["intermediate_size"] for i in layers]
    if full["num_key_value_heads"] != config["num_key_value_heads"]:
        heads = {FULL: full["num_key_value_heads"], SLIDING: config["num_key_value_heads"]}
        written["num_key_value_heads"] = [heads[kind] for kind in types]
    decoder.set_gguf_parameters(writer, written, file_type, ropes[SLIDING]["rope_theta"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])
    writer.add_shared_kv_layers(config["num_kv_shared_layers"])
    writer.add_embedding_length_per_layer_input(config["hidden_size_per_layer_input"])
    writer.add_sliding_window_pattern([kind == SLIDING for kind in types])
    writer.add_key_length_swa(config["head_dim"])
    writer.add_value_length_swa(config["head_dim"])
    if config.get("moe_intermediate_size") is not None:
        writer.add_expert_feed_forward_length(config["moe_intermediate_size"])
    writer.add_rope_dimension_count(full["head_dim"])
    writer.add_rope_dimension_count_swa(config["head_dim"])


def generate_gemma4_extra_tensors(config: Config) -> dict[str, LazyTensor]:
    """Make the factors that leave most pairs of the wide heads as they are."""
    pairs = get_full_attention(config)["head_dim"] // 2
    turned = int(2 * pairs * config["rope_parameters"][FULL]["partial_rotary_factor"] / 2)
    factors = [1.0] * turned + [NO_ROTATION] * (pairs - turned)
    return {"rope_freqs.weight": decoder.make_factors_tensor(factors)}


def rename_gemma4_tensors(tensors: Tensors, _config: Config) -> dict[str, LazyTensor]:
    """Have the tensors under names that gguf-py knows: all weights, a router's scales as those of what they scale."""
    renamed = {}
    for name, tensor in tensors.items():
        for old, new in RENAMED.items():
            name = name.removesuffix(old) + new if name.endswith(old) else name
        bare = name.endswith(".layer_scalar") or (".experts." in name and not name.endswith((".weight", ".scale")))
        renamed[f"{name}.weight" if bare else name] = tensor
    return renamed


GEMMA4 = decoder.make_architecture(
    name="gemma4",
    keys=decoder.KEYS
    | experts.KEYS
    | {
        "rope_parameters": gemma3.NESTED_ROPE_KEYS,
        **dict.fromkeys(("hidden_activation", "use_bidirectional_attention"), TEXT),
        **dict.fromkeys(("global_head_dim", "num_global_key_value_heads", "top_k_experts", "sliding_window"), COUNT),
        "vocab_size_per_layer_input": COUNT,
        **dict.fromkeys(("hidden_size_per_layer_input", "num_kv_shared_layers"), INDEX),
        **dict.fromkeys(("attention_k_eq_v", "enable_moe_block", "use_double_wide_mlp"), FLAG),
        "final_logit_softcapping": POSITIVE,
        "per_layer_config": OBJECT,
    },
    defaults=decoder.DEFAULTS
    | {"vocab_size": 262144, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 30}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 512}
    | {"hidden_activation": gemma3.GELU, "max_position_embeddings": 131072, "tie_word_embeddings": True}
    | {"vocab_size_per_layer_input": 262144, "hidden_size_per_layer_input": 256, "num_kv_shared_layers": 0}
    | dict.fromkeys(("attention_k_eq_v", "enable_moe_block", "use_double_wide_mlp"), False)
    | {
        "rope_parameters": {
            FULL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        }
    },
    shapes=SHAPES,
    get_sizes=get_gemma4_sizes,
    get_layer_sizes=get_gemma4_layer_sizes,
    get_optional=get_gemma4_optional,
    get_absent=get_gemma4_absent,
    get_unused=get_gemma4_unused,
    find_contradiction=find_gemma4_contradiction,
    find_unsupported=find_gemma4_unsupported,
    prepare_tensors=rename_gemma4_tensors,
    set_gguf_parameters=set_gemma4_gguf_parameters,
    generate_extra_tensors=generate_gemma4_extra_tensors,
    build_vocab=build_gemma4_vocab,
    set_vocab=lambda writer, config, vocab: write_gemma4_vocab(writer, vocab),
)
