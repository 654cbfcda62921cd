"""Hunyuan, dense: queries and keys are normalized after RoPE, whose base is stretched by a fixed alpha."""

from typing import Any

from gguf import GGUFWriter, RopeScalingType
from impruver_core.io.json_schema import INDEX, NUMBER, WHOLE, either, list_of, read_json

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.vocab.token_types import Vocabulary
from impruver_gguf.vocab.vocabulary import write_vocab

ALPHA, THETA, CONTEXT = "dynamic", 1e4, 256 * 1024  # the scaling's name; what llama.cpp's converter knows it with
KNOWN_CONTEXTS = (32 * 1024, CONTEXT)  # what config.json may say, and always means CONTEXT
ROPE_KEYS = decoder.ROPE_KEYS | {"alpha": NUMBER}
SHAPES = decoder.EMBEDDINGS | decoder.ATTENTION | decoder.HEAD_NORMS | decoder.FEED_FORWARD


def find_hunyuan_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise, or not load: biases, RoPE, activation."""
    rope = decoder.get_rope(config)
    if config.get("attention_bias"):
        return "attention_bias"
    if rope["rope_type"] == ALPHA:
        if not rope.get("alpha"):
            return f"rope_type {ALPHA} without alpha"
        if rope["rope_theta"] != THETA:
            return f"rope_type {ALPHA} and rope_theta {rope['rope_theta']} (its converter knows {THETA:g} alone)"
        if config["max_position_embeddings"] not in KNOWN_CONTEXTS:
            known = " and ".join(map(str, KNOWN_CONTEXTS))
            context = config["max_position_embeddings"]
            return f"rope_type {ALPHA} and max_position_embeddings {context} (its converter knows {known} alone)"
    supported = ("default", "linear", "yarn", ALPHA)
    return decoder.find_unsupported_rope(config, supported) or decoder.find_unsupported(config)


def set_hunyuan_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write a decoder's hyperparameters, with RoPE's stretched base and the context that it makes usable."""
    rope, head_dim = decoder.get_rope(config), decoder.get_head_dim(config)
    if rope["rope_type"] != ALPHA:
        return decoder.set_gguf_parameters(writer, config, file_type)
    rope["rope_theta"] *= rope["alpha"] ** (head_dim / (head_dim - 2))
    stretched = {"rope_parameters": rope, "max_position_embeddings": CONTEXT}
    decoder.set_gguf_parameters(writer, config | stretched, file_type)
    writer.add_rope_scaling_type(RopeScalingType.NONE)
    writer.add_rope_scaling_factor(1)
    return writer.add_rope_scaling_orig_ctx_len(CONTEXT)


def set_hunyuan_vocab(writer: GGUFWriter, config: Config, vocab: Vocabulary) -> None:
    """Write the vocabulary; a text ends with `eod_token_id`, a turn with generation_config.json's first of several."""
    end = config.get("eod_token_id")
    ids: dict[str, int] = {}

    def change_ids(found: dict[str, int]) -> dict[str, int]:
        ids.update(found)
        return found | {"eos": end} if end is not None and "eos" in found else found

    write_vocab(writer, vocab, change_ids)
    if end is not None and "eos" not in ids:
        writer.add_eos_token_id(end)
    keys: dict[str, Any] = {"eos_token_id": either(WHOLE, list_of(INDEX))}
    ends = read_json(vocab.folder / "generation_config.json", keys, missing_ok=True).get("eos_token_id")
    if isinstance(ends, list) and len(ends) > 1:
        writer.add_eot_token_id(ends[0])


HUNYUAN = decoder.make_architecture(
    name="hunyuan-dense",
    keys=decoder.KEYS | {"eod_token_id": INDEX, "rope_parameters": ROPE_KEYS, "rope_scaling": ROPE_KEYS},
    defaults=decoder.DEFAULTS
    | {"vocab_size": 290943, "intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    shapes=SHAPES,
    find_unsupported=find_hunyuan_unsupported,
    prepare_tensors=decoder.drop_tied_output,
    set_gguf_parameters=set_hunyuan_gguf_parameters,
    set_vocab=set_hunyuan_vocab,
)
