"""Gemma 3, its text models: a window in five of six layers, norms stored less one."""

from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, FLAG, NUMBER, POSITIVE, TEXT

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.vocab.vocabulary import write_vocab
from impruver_gguf.weights.lazy_tensor import LazyTensor, add_one

FULL, SLIDING = "full_attention", "sliding_attention"
NESTED_ROPE_KEYS = decoder.ROPE_KEYS | {FULL: decoder.ROPE_KEYS, SLIDING: decoder.ROPE_KEYS}
POST_NORMS = {"blk.post_attention_norm.weight": ("hidden_size",), "blk.post_ffw_norm.weight": ("hidden_size",)}
GELU = "gelu_pytorch_tanh"
FULL_EVERY = 6  # llama.cpp has each sixth layer attend to all
LAYERS_OF_27B = 62  # the model whose attention llama.cpp scales by another width


def get_global_config(config: Config) -> Config:
    """The configuration with the RoPE of the full-attention layers where other decoders have theirs."""
    ropes = config.get("rope_parameters") or {}
    if FULL in ropes or SLIDING in ropes:
        ropes = ropes.get(FULL) or {}
    ropes = ropes or config.get("rope_scaling") or {}
    return {name: value for name, value in config.items() if name != "rope_scaling"} | {"rope_parameters": ropes}


def get_local_rope(config: Config) -> Config:
    """RoPE's parameters in the layers with a window, where they have their own."""
    return (config.get("rope_parameters") or {}).get(SLIDING) or {}


def find_gemma3_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: activation, RoPE, biases, layer types, the attention's scale."""
    reason = decoder.find_unsupported_rope(get_global_config(config), ("default", "linear"))
    named = config | {"hidden_act": config["hidden_activation"]}
    reason = reason or decoder.find_unsupported(named, GELU)
    for name in ("attention_bias", "use_bidirectional_attention", "attn_logit_softcapping"):
        reason = reason or (name if config.get(name) else None)
    kind = get_local_rope(config).get("rope_type", "default")
    if kind != "default":
        reason = reason or f"rope_type {kind} of {SLIDING}"
    return reason or find_other_layers(config, FULL_EVERY) or find_other_scale(config, LAYERS_OF_27B)


def find_other_layers(config: Config, full_every: int) -> str | None:
    """Name `layer_types`, or what stood for it in transformers 4, where other layers than llama.cpp's have windows."""
    count, step = config["num_hidden_layers"], config.get("sliding_window_pattern", full_every)
    kinds = config.get("layer_types") or [FULL if (layer + 1) % step == 0 else SLIDING for layer in range(count)]
    supported = [FULL if (layer + 1) % full_every == 0 else SLIDING for layer in range(count)]
    return None if kinds == supported else f"layer_types other than full attention in each {full_every}th"


def find_other_scale(config: Config, layers_of_27b: int) -> str | None:
    """Name the number by which attention is scaled, where llama.cpp takes another."""
    width = config["head_dim"]
    if config["num_hidden_layers"] == layers_of_27b:
        width = config["hidden_size"] // config["num_attention_heads"]
    scalar = config["query_pre_attn_scalar"]
    return None if scalar == width else f"query_pre_attn_scalar {scalar}"


def set_gemma3_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, the window and its RoPE, the soft cap of the logits."""
    theta = get_local_rope(config).get("rope_theta") or config["rope_local_base_freq"]
    decoder.set_gguf_parameters(writer, get_global_config(config), file_type, theta)
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    writer.add_sliding_window(config["sliding_window"])


def modify_gemma3_tensors(name: str, tensor: LazyTensor, config: Config) -> LazyTensor:
    """Add one to the norms: transformers multiplies by 1 + weight, llama.cpp by the weight."""
    return add_one(tensor) if name.endswith("norm.weight") else tensor


def set_gemma3_vocab(writer: GGUFWriter, config: Config, vocab: Vocabulary) -> None:
    """Write the vocabulary; with SentencePiece no blank is put before a text."""
    write_vocab(writer, vocab)
    if vocab.is_sentencepiece:
        writer.add_add_space_prefix(False)


GEMMA3 = decoder.make_architecture(
    name="gemma3",
    keys=decoder.KEYS
    | {
        "rope_parameters": NESTED_ROPE_KEYS,
        "hidden_activation": TEXT,
        **dict.fromkeys(("query_pre_attn_scalar", "rope_local_base_freq"), POSITIVE),
        **dict.fromkeys(("final_logit_softcapping", "attn_logit_softcapping"), NUMBER),
        **dict.fromkeys(("sliding_window", "sliding_window_pattern"), COUNT),
        "use_bidirectional_attention": FLAG,
    },
    defaults=decoder.DEFAULTS
    | {"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
    | {"hidden_activation": GELU, "query_pre_attn_scalar": 256, "max_position_embeddings": 131072}
    | {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "tie_word_embeddings": True},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | decoder.HEAD_NORMS | POST_NORMS | decoder.FEED_FORWARD,
    find_contradiction=lambda config: decoder.find_contradiction(get_global_config(config)),
    find_unsupported=find_gemma3_unsupported,
    set_gguf_parameters=set_gemma3_gguf_parameters,
    modify_tensors=modify_gemma3_tensors,
    set_vocab=set_gemma3_vocab,
)
