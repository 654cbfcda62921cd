"""Llama (SmolLM, SmolLM2, Llama 2 and 3.x), Mistral and Mixtral, which llama.cpp takes for one, and SmolLM3."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from gguf import GGUFWriter
from impruver_core.io.json_schema import COUNT, INDEX, list_of

from impruver_gguf.architectures.base import decoder, experts
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.vocab.vocabulary import write_vocab
from impruver_gguf.weights.lazy_tensor import LazyTensor, Rounding, RoundingReader, Tensors

MLP_BIASES = {
    name.replace(".weight", ".bias"): sizes[:1] for name, sizes in decoder.FEED_FORWARD.items() if len(sizes) > 1
}
SHAPES = decoder.EMBEDDINGS | decoder.ATTENTION | decoder.ATTENTION_BIASES | decoder.FEED_FORWARD | MLP_BIASES
BIASES = {"attention_bias": "blk.attn_", "mlp_bias": "blk.ffn_"}  # key of config.json → where it puts biases
ROPE_TYPES = ("default", "linear", "yarn", "llama3")
NO_ROPE_EVERY = 4  # llama.cpp's SmolLM3 has no RoPE in each fourth layer


def get_llama_optional(config: Config) -> list[str]:
    """The biases that no key asks for."""
    starts = tuple(start for key, start in BIASES.items() if not config.get(key))
    return [name for name in SHAPES if name.endswith(".bias") and name.startswith(starts)]


def find_llama_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: RoPE, activation."""
    return decoder.find_unsupported_rope(config, ROPE_TYPES) or decoder.find_unsupported(config)


def find_smollm3_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: other layers without RoPE, biases, windows."""
    step = config.get("no_rope_layer_interval", NO_ROPE_EVERY)
    count = config["num_hidden_layers"]
    with_rope = config.get("no_rope_layers") or [int((layer + 1) % step != 0) for layer in range(count)]
    if with_rope[:count] != [int((layer + 1) % NO_ROPE_EVERY != 0) for layer in range(count)]:
        return f"no_rope_layers other than each {NO_ROPE_EVERY}th"
    biased = next((name for name in BIASES if config.get(name)), None)  # for which llama.cpp has no place
    return biased or ("sliding windows" if decoder.has_sliding_window(config) else find_llama_unsupported(config))


def set_smollm3_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, the vocabulary's size and how much of a head RoPE turns."""
    decoder.set_gguf_parameters(writer, config, file_type)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_rope_dimension_count(decoder.get_head_dim(config))


def set_llama_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write these with the head's width, whether config.json names it or not."""
    set_smollm3_gguf_parameters(writer, config | {"head_dim": decoder.get_head_dim(config)}, file_type)


def generate_llama_extra_tensors(config: Config) -> dict[str, LazyTensor]:
    """Make the factors of Llama 3.x's RoPE, which GGUF holds as a tensor."""
    rope = decoder.get_rope(config)
    if rope["rope_type"] != "llama3":
        return {}
    factors = decoder.compute_llama3_factors(rope, decoder.get_head_dim(config))
    return {"rope_freqs.weight": decoder.make_factors_tensor(factors)}


def modify_llama_tensors(name: str, tensor: LazyTensor, config: Config) -> LazyTensor:
    """Interleave the halves of each head of queries and keys: llama.cpp's RoPE turns neighbours."""
    if not name.endswith((".q_proj.weight", ".q_proj.bias", ".k_proj.weight", ".k_proj.bias")):
        return tensor
    return _interleave(tensor, decoder.get_head_dim(config))


def _interleave(tensor: LazyTensor, head_dim: int) -> LazyTensor:
    """Order rows as 0, h, 1, h + 1, … of each head, where h is half of its rows."""
    inner = tensor.read

    def read(start: int, stop: int) -> np.ndarray:
        return _read_interleaved(inner, head_dim, start, stop)

    def read_rounded(rounding: Rounding, start: int, stop: int) -> np.ndarray:
        return _read_interleaved(partial(inner.read_rounded, rounding), head_dim, start, stop)

    reader = RoundingReader(read, read_rounded) if isinstance(inner, RoundingReader) else read
    return LazyTensor(tensor.shape, reader, rows_at_once=head_dim)


def _read_interleaved(read: Callable[[int, int], np.ndarray], head_dim: int, start: int, stop: int) -> np.ndarray:
    """Read rows in that order; whole heads are read."""
    first, last = start // head_dim, -(-stop // head_dim)
    values = read(first * head_dim, last * head_dim)
    turned = values.reshape(last - first, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    return turned[start - first * head_dim : stop - first * head_dim]


def find_mixtral_contradiction(config: Config) -> str | None:
    """Name what no mixture of such decoders can have."""
    return decoder.find_contradiction(config) or experts.find_expert_contradiction(config)


def prepare_mixtral_tensors(tensors: Tensors, _: Config) -> dict[str, LazyTensor]:
    """Have experts as stacks: w1, w2 and w3 of each as on the hub, or fused as inside of transformers 5."""
    return experts.split_fused_experts(experts.stack_experts(tensors, ("w1", "w2", "w3")))


def set_llama_vocab(writer: GGUFWriter, config: Config, vocab: Vocabulary) -> None:
    """Write the vocabulary, and what llama.cpp infers from its size.

    32,016 tokens are CodeLlama's, with its end of infilling; 49,152 Granite's (and SmolLM's), without a BOS.
    """
    if vocab.config.get("add_prefix_space") is not None:
        writer.add_add_space_prefix(vocab.config["add_prefix_space"])
    write_vocab(writer, vocab)
    if config["vocab_size"] == 32016:
        writer.add_eot_token_id(32010)
    if config["vocab_size"] == 49152:
        writer.add_add_bos_token(False)


DEFAULTS = decoder.DEFAULTS | {"vocab_size": 32000, "intermediate_size": 11008, "max_position_embeddings": 2048}
LLAMA = decoder.make_architecture(
    name="llama",
    defaults=DEFAULTS,
    shapes=SHAPES,
    get_optional=get_llama_optional,
    find_unsupported=find_llama_unsupported,
    set_gguf_parameters=set_llama_gguf_parameters,
    generate_extra_tensors=generate_llama_extra_tensors,
    modify_tensors=modify_llama_tensors,
    set_vocab=set_llama_vocab,
)
MISTRAL = replace(
    LLAMA, defaults=DEFAULTS | {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072}
)
MIXTRAL = replace(
    MISTRAL,
    keys=decoder.KEYS | experts.KEYS,
    defaults=MISTRAL.defaults
    | {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "num_experts_per_tok": 2, "num_local_experts": 8},
    shapes=decoder.EMBEDDINGS | decoder.ATTENTION | experts.SHAPES,
    get_optional=lambda config: (),
    find_contradiction=find_mixtral_contradiction,
    set_gguf_parameters=set_smollm3_gguf_parameters,
    prepare_tensors=prepare_mixtral_tensors,
)
SMOLLM3 = replace(
    LLAMA,
    name="smollm3",
    keys=decoder.KEYS | {"no_rope_layers": list_of(INDEX), "no_rope_layer_interval": COUNT},
    defaults=DEFAULTS
    | {"vocab_size": 128256, "hidden_size": 2048, "num_hidden_layers": 36, "num_attention_heads": 16}
    | {"num_key_value_heads": 4, "max_position_embeddings": 32768, "tie_word_embeddings": True, "rope_theta": 2e6},
    find_unsupported=find_smollm3_unsupported,
    set_gguf_parameters=set_smollm3_gguf_parameters,
)
