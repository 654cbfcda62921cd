"""Ministral 3, and Mistral Small 3 as its multimodal class has it, for which llama.cpp has one architecture."""

import math
from dataclasses import replace

from gguf import GGUFWriter
from impruver_core.io.json_schema import NUMBER

from impruver_gguf.architectures.base import decoder
from impruver_gguf.architectures.base.architecture import Config
from impruver_gguf.architectures.dense import llama

BETA, MSCALE, MSCALE_ALL_DIM = "llama_4_scaling_beta", "mscale", "mscale_all_dim"
# What transformers takes where a Ministral 3 has no rope_parameters.
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    MSCALE: 1.0,
    MSCALE_ALL_DIM: 1.0,
    BETA: 0.1,
}


def find_ministral3_contradiction(config: Config) -> str | None:
    """Name what no Ministral 3 can have: yarn without the numbers that it asks for, and a decoder's."""
    rope = decoder.get_rope(config)
    missing = [name for name in ("factor", MSCALE_ALL_DIM, BETA) if rope["rope_type"] == "yarn" and name not in rope]
    return f"rope_parameters comes without {missing[0]}" if missing else decoder.find_contradiction(config)


def find_ministral3_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: RoPE other than Ministral 3's, windows, activation."""
    rope = decoder.get_rope(config)
    if rope["rope_type"] != "yarn" or config.get("rope_scaling"):
        return f"rope_type {rope['rope_type']}"
    return _find_other_yarn(rope) or _find_window(config) or decoder.find_unsupported(config)


def _find_other_yarn(rope: Config) -> str | None:
    if rope["partial_rotary_factor"] != 1:
        return "partial_rotary_factor"
    if rope.get("truncate", True) is not True:
        return f"truncate {rope['truncate']} of yarn"
    # llama.cpp divides the scale of mscale 1 by that of mscale_all_dim, and multiplies by nothing else.
    if rope[MSCALE_ALL_DIM] and rope.get(MSCALE) != 1:
        return f"{MSCALE} {rope.get(MSCALE)} of yarn"
    log = 0.1 * math.log(max(rope["factor"], 1.0))
    computed = (log + 1) / (rope[MSCALE_ALL_DIM] * log + 1)
    for name in ("attention_factor", "attn_factor"):
        if not math.isclose(rope.get(name, computed), computed, rel_tol=1e-5):
            return f"{name} {rope[name]} of yarn"
    return None


def _find_window(config: Config) -> str | None:
    window = config["sliding_window"]
    return f"sliding_window {window}" if window and window < config["max_position_embeddings"] else None


def find_mistral3_unsupported(config: Config) -> str | None:
    """Name what llama.cpp would compute otherwise: another family's text model, windows, RoPE, activation."""
    if config.get("model_type") not in (None, "mistral", "mistral3"):
        return f"text_config.model_type {config['model_type']}"
    return _find_window(config) or llama.find_llama_unsupported(config)


def set_ministral3_gguf_parameters(writer: GGUFWriter, config: Config, file_type: int) -> None:
    """Write Llama's hyperparameters, yarn's scale of the attention and by what queries grow with their position."""
    llama.set_llama_gguf_parameters(writer, config, file_type)
    rope = decoder.get_rope(config)
    writer.add_rope_scaling_yarn_log_mul(rope[MSCALE_ALL_DIM])
    writer.add_attn_temperature_scale(rope[BETA])


ROPE_KEYS = decoder.ROPE_KEYS | dict.fromkeys((BETA, MSCALE, MSCALE_ALL_DIM), NUMBER)
SHAPES = decoder.EMBEDDINGS | decoder.ATTENTION | decoder.FEED_FORWARD
MISTRAL3 = replace(
    llama.MISTRAL,
    name="mistral3",
    defaults=llama.MISTRAL.defaults | {"sliding_window": 4096, "tie_word_embeddings": True},
    shapes=SHAPES,
    get_optional=lambda config: (),
    nullable=("sliding_window",),
    find_unsupported=find_mistral3_unsupported,
)
MINISTRAL3 = replace(
    MISTRAL3,
    keys=decoder.KEYS | {"rope_parameters": ROPE_KEYS},
    defaults=decoder.DEFAULTS
    | {"vocab_size": 131072, "intermediate_size": 14336, "num_hidden_layers": 34, "num_key_value_heads": 8}
    | {"head_dim": 128, "max_position_embeddings": 262144, "rms_norm_eps": 1e-5, "sliding_window": None}
    | {"rope_parameters": YARN},
    find_contradiction=find_ministral3_contradiction,
    find_unsupported=find_ministral3_unsupported,
    set_gguf_parameters=set_ministral3_gguf_parameters,
)
MINISTRAL3_TEXT_MODEL = replace(MINISTRAL3, defaults=MINISTRAL3.defaults | {"tie_word_embeddings": True})
