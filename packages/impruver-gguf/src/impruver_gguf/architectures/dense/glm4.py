"""GLM-4 (0414 and later): norms before and after, gate and up in one matrix, RoPE in half of each head."""

from gguf import GGUFWriter

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.dense.gemma3 import POST_NORMS
from impruver_gguf.architectures.dense.phi3 import GATE_UP
from impruver_gguf.architectures.dense.qwen import QKV_BIASES
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.vocab.vocabulary import write_vocab

SHAPES = (
    decoder.EMBEDDINGS
    | decoder.ATTENTION
    | QKV_BIASES
    | POST_NORMS
    | {
        "blk.ffn_norm.weight": ("hidden_size",),
        "blk.ffn_up.weight": (GATE_UP, "hidden_size"),
        "blk.ffn_down.weight": ("hidden_size", "intermediate_size"),
    }
)
# Special tokens that llama.cpp's converter gives these models where the tokenizer's files name no other.
SPECIAL_TOKENS = {"eos": "<|endoftext|>", "eot": "<|user|>", "unk": "<|endoftext|>", "bos": "<|endoftext|>"}


def get_rotary_dim(config: Config) -> int:
    """How many values of a head RoPE turns."""
    return int(decoder.get_head_dim(config) * decoder.get_rope(config)["partial_rotary_factor"])


def find_glm4_contradiction(config: Config) -> str | None:
    """Name what in a configuration no GLM-4 can have: an odd part of a head that RoPE turns, and a decoder's."""
    rotary_dim = get_rotary_dim(config)
    if rotary_dim % 2:
        return f"partial_rotary_factor makes RoPE turn {rotary_dim} values of a head, and it turns pairs"
    return decoder.find_contradiction(config)


def get_glm4_sizes(config: Config) -> dict[str, int]:
    """The sizes that `SHAPES` names."""
    return decoder.get_sizes(config) | {GATE_UP: 2 * config["intermediate_size"]}


def get_glm4_optional(config: Config) -> list[str]:
    """The biases, where no key asks for them."""
    return [] if config["attention_bias"] else [*QKV_BIASES]


def find_glm4_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: RoPE but for its share of a head, activation."""
    rope = decoder.get_rope(config)
    if "mrope_section" in rope:
        return "mrope_section"
    whole = config | {"rope_parameters": rope | {"partial_rotary_factor": 1.0}}
    return decoder.find_unsupported_rope(whole, ("default", "linear", "yarn")) or decoder.find_unsupported(config)


def set_glm4_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters and how much of a head RoPE turns."""
    decoder.set_gguf_parameters(writer, config, file_type)
    writer.add_rope_dimension_count(get_rotary_dim(config))


def set_glm4_vocab(writer: GGUFWriter, _: Config, vocab: Vocabulary) -> None:
    """Write the vocabulary with GLM's special tokens, as far as it has them."""
    write_glm_vocab(writer, vocab, SPECIAL_TOKENS)


def write_glm_vocab(writer: GGUFWriter, vocab: Vocabulary, special_tokens: dict[str, str]) -> None:
    """Write the vocabulary with special tokens by their role where its files name none, as far as it has them."""
    ids = {text: token_id for token_id, text in enumerate(vocab.tokens)}
    known = {role: ids[text] for role, text in special_tokens.items() if text in ids}
    write_vocab(writer, vocab, lambda found: found | {role: known[role] for role in known if role not in found})


GLM4 = decoder.make_architecture(
    name="glm4",
    defaults=decoder.DEFAULTS
    | {"vocab_size": 151552, "intermediate_size": 13696, "num_hidden_layers": 40, "num_key_value_heads": 2}
    | {"head_dim": 128, "max_position_embeddings": 131072, "rms_norm_eps": 1.5625e-7, "partial_rotary_factor": 0.5}
    | {"attention_bias": True},
    shapes=SHAPES,
    find_contradiction=find_glm4_contradiction,
    get_sizes=get_glm4_sizes,
    get_optional=get_glm4_optional,
    find_unsupported=find_glm4_unsupported,
    set_gguf_parameters=set_glm4_gguf_parameters,
    set_vocab=set_glm4_vocab,
)
