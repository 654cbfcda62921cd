"""Gemma 2: a window in every other layer, soft caps of attention and logits, norms stored less one."""

from gguf import GGUFWriter
from impruver_core.errors import ImpruverError
from impruver_core.io.json_schema import COUNT, FLAG, POSITIVE, TEXT

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.dense import gemma3
from impruver_gguf.weights.lazy_tensor import LazyTensor, Tensors, has_same_values

CAPS = ("attn_logit_softcapping", "final_logit_softcapping")
FULL_EVERY = 2  # llama.cpp has each second layer attend to all
LAYERS_OF_27B = 46  # the model whose attention llama.cpp scales by another width


def find_gemma2_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: RoPE, activation, biases, layers, caps, the attention's scale."""
    rope = decoder.get_rope(config)
    if rope["rope_theta"] != 10000:
        return f"rope_theta {rope['rope_theta']}"
    reason = decoder.find_unsupported_rope(config, ("default",))
    reason = reason or decoder.find_unsupported(config | {"hidden_act": config["hidden_activation"]}, gemma3.GELU)
    for name in ("attention_bias", "use_bidirectional_attention"):
        reason = reason or (name if config.get(name) else None)
    for name in (*CAPS, "sliding_window"):
        reason = reason or (f"{name} null" if config[name] is None else None)
    if not config["tie_word_embeddings"]:
        reason = reason or "an output of its own (tie_word_embeddings false)"
    reason = reason or gemma3.find_other_layers(config, FULL_EVERY)
    return reason or gemma3.find_other_scale(config, LAYERS_OF_27B)


def set_gemma2_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write the hyperparameters in llama.cpp's order, which is another than other decoders'."""
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(decoder.get_kv_head_count(config))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_file_type(file_type)
    writer.add_attn_logit_softcapping(config[CAPS[0]])
    writer.add_final_logit_softcapping(config[CAPS[1]])
    writer.add_sliding_window(config["sliding_window"])


def drop_output(tensors: Tensors, config: Config) -> dict[str, LazyTensor]:
    """All tensors but a copy of the embeddings as output, which llama.cpp has no place for.

    ImpruverError where it is no copy: transformers then takes it for an output of its own.
    """
    output, embedding = tensors.get("lm_head.weight"), tensors.get("model.embed_tokens.weight")
    if output and embedding and not has_same_values(output, embedding):
        raise ImpruverError(
            "lm_head.weight is another matrix than the embeddings, and llama.cpp's Gemma 2 has only these: train it "
            "with its ends tied"
        )
    return {name: tensor for name, tensor in tensors.items() if name != "lm_head.weight"}


GEMMA2 = decoder.make_architecture(
    name="gemma2",
    keys=decoder.KEYS
    | {
        "hidden_activation": TEXT,
        "use_bidirectional_attention": FLAG,
        **dict.fromkeys(("query_pre_attn_scalar", *CAPS), POSITIVE),
        "sliding_window": COUNT,
    },
    defaults=decoder.DEFAULTS
    | {"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26}
    | {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096}
    | {"hidden_activation": gemma3.GELU, "query_pre_attn_scalar": 256, "max_position_embeddings": 8192}
    | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "tie_word_embeddings": True},
    nullable=(*CAPS, "sliding_window"),
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | gemma3.POST_NORMS | decoder.FEED_FORWARD,
    get_optional=lambda config: ("output.weight",),
    find_unsupported=find_gemma2_unsupported,
    prepare_tensors=drop_output,
    set_gguf_parameters=set_gemma2_gguf_parameters,
    modify_tensors=gemma3.modify_gemma3_tensors,
    set_vocab=gemma3.set_gemma3_vocab,
)
