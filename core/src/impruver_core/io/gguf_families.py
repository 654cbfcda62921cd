"""Which GGUF files llama.cpp runs for sure: models of usual families, with nothing in their headers that is unusual.

llama.cpp asserts where it might check. A zero, a token that stands there twice or a list of another type ends the
process; some vocabularies have it loop, or fill the memory. The values below were tried one by one, and no others were:
what is none of these need not be wrong, but it is to be tried where it does no harm.
"""

from collections.abc import Callable, Sequence

from impruver_core.io.gguf_file import GgufHeader, GgufValue

FAMILIES = ("llama", "qwen2", "qwen3", "phi3", "gemma3", "gpt2", "smollm3")
OWN_HEADS = tuple(family for family in FAMILIES if family != "gpt2")  # whose width may be any
PARTLY_TURNED = ("phi3",)  # whose heads may have values that RoPE leaves alone
FEWEST_LAYERS = {"gemma3": 6}  # with fewer, none sees the whole context, and llama.cpp clears a cache that is not there
TOKENS, TOKEN_TYPES = "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
LISTS = (TOKENS, TOKEN_TYPES)  # that are to be read
ROPE_WIDTH = "rope.dimension_count"
BYTE_LEVEL, SENTENCEPIECE = "gpt2", "llama"  # tokenizers
SPECIAL_ID = "_token_id"
BYTE_TYPE, MOST_TYPE = 6, 6  # of a token
BYTE_TOKENS = frozenset(b"<0x%02X>" % byte for byte in range(256))
FEWEST_TOKENS, MOST_TOKENS = 100, 1 << 19
NO_MATRIX = ("I8", "I16", "I32", "I64", "F64", "Q8_1", "Q8_K")  # llama.cpp multiplies by none of these

Check = Callable[[GgufValue], bool]


def _is_size(value: GgufValue) -> bool:
    return value.type == "uint32" and value.count is None and 0 < value.value < 1 << 24


def _is_number(value: GgufValue) -> bool:
    return value.type == "float32" and value.count is None and 0 < value.value < 1e30


def _is_epsilon(value: GgufValue) -> bool:
    return value.type == "float32" and value.count is None and 0 <= value.value < 1


def _is_flag(value: GgufValue) -> bool:
    return value.type == "bool" and value.count is None


def _is_text(value: GgufValue) -> bool:
    return value.type == "text" and value.count is None


def _is_list(kind: str) -> Check:
    return lambda value: value.type == kind and value.count is not None


FAMILY_KEYS: dict[str, Check] = {
    **dict.fromkeys(("vocab_size", "context_length", "block_count"), _is_size),
    **dict.fromkeys(("embedding_length", "feed_forward_length", ROPE_WIDTH), _is_size),
    **dict.fromkeys(("attention.head_count", "attention.head_count_kv", "attention.sliding_window"), _is_size),
    **dict.fromkeys(("attention.key_length", "attention.value_length"), _is_size),
    **dict.fromkeys(("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"), _is_epsilon),
    **dict.fromkeys(("rope.freq_base", "rope.freq_base_swa", "final_logit_softcapping"), _is_number),
    **dict.fromkeys(("rope.scaling.factor", "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor"), _is_number),
    **dict.fromkeys(("rope.scaling.yarn_ext_factor", "rope.scaling.yarn_log_multiplier"), _is_number),
    **dict.fromkeys(("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"), _is_number),
    "rope.scaling.original_context_length": _is_size,
    "rope.scaling.finetuned": _is_flag,
    "rope.scaling.type": lambda value: _is_text(value) and value.value in ("none", "linear", "yarn", "longrope"),
}
TOKENIZER_KEYS: dict[str, Check] = {
    "ggml.model": lambda value: _is_text(value) and value.value in (BYTE_LEVEL, SENTENCEPIECE),
    "ggml.pre": _is_text,
    "ggml.tokens": _is_list("text"),
    "ggml.token_type": _is_list("int32"),
    "ggml.scores": _is_list("float32"),
    "ggml.merges": _is_list("text"),
    **dict.fromkeys(("ggml.add_bos_token", "ggml.add_eos_token", "ggml.add_sep_token"), _is_flag),
    **dict.fromkeys(("ggml.add_space_prefix", "ggml.remove_extra_whitespaces"), _is_flag),
    "chat_template": _is_text,
    "chat_templates": _is_list("text"),
}


def is_usual_model(parts: Sequence[GgufHeader]) -> bool:
    """Whether llama.cpp is known to run such a file; its lists of LISTS are to be there."""
    values = parts[0].values
    architecture = values.get("general.architecture")
    family = architecture.value if architecture else None
    if len(parts) > 1 or family not in FAMILIES or any(key.startswith(("split.", "adapter.")) for key in values):
        return False
    sizes = _read_section(values, f"{family}.", FAMILY_KEYS)
    tokenizer = _read_section(values, "tokenizer.", TOKENIZER_KEYS)
    if sizes is None or tokenizer is None:
        return False
    usual = _has_usual_tokens(tokenizer) and _has_usual_layers(family, sizes)
    return usual and _has_usual_tensors(parts[0], sizes, tokenizer)


def _read_section(values: dict[str, GgufValue], prefix: str, checks: dict[str, Check]) -> dict[str, GgufValue] | None:
    """The values whose keys have a prefix, without it; None where one of them is unusual."""
    section = {key.removeprefix(prefix): value for key, value in values.items() if key.startswith(prefix)}
    for key, value in section.items():
        if key.endswith(SPECIAL_ID):
            usual = _is_size(value) or value == GgufValue("uint32", 0)
        elif key.startswith("chat_template."):  # further templates by their names
            usual = _is_text(value)
        else:
            usual = key in checks and checks[key](value)
        if not usual:
            return None
    return section


def _has_usual_tokens(tokenizer: dict[str, GgufValue]) -> bool:
    """Whether each token is a text of its own, with one of the usual types, and those that stand for bytes do."""
    if not {"ggml.model", "ggml.tokens", "ggml.token_type"} <= tokenizer.keys():
        return False
    (_, tokens, count), types = tokenizer["ggml.tokens"], tokenizer["ggml.token_type"].value
    if any(tokenizer[key].count != count for key in ("ggml.token_type", "ggml.scores") if key in tokenizer):
        return False
    if not FEWEST_TOKENS <= count <= MOST_TOKENS:
        return False
    unique, joined = set(tokens), b"\n".join(tokens)
    if len(unique) != count or b"" in unique or b"\0" in joined or not _is_utf8(joined):
        return False
    kinds = set(types)
    if min(kinds) < 1 or max(kinds) > MOST_TYPE:
        return False
    standing_for_bytes = (token for token, kind in zip(tokens, types, strict=True) if kind == BYTE_TYPE)
    if BYTE_TYPE in kinds and not BYTE_TOKENS.issuperset(standing_for_bytes):
        return False
    if any(value.value >= count for key, value in tokenizer.items() if key.endswith(SPECIAL_ID)):
        return False
    return unique >= BYTE_TOKENS if tokenizer["ggml.model"].value == SENTENCEPIECE else "ggml.merges" in tokenizer


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def _has_usual_layers(family: str, sizes: dict[str, GgufValue]) -> bool:
    """Whether the heads of attention divide what they share, and RoPE turns their values, all of them, in pairs."""
    numbers = {key: value.value for key, value in sizes.items()}
    width, heads = numbers.get("embedding_length"), numbers.get("attention.head_count")
    if width is None or heads is None or heads % numbers.get("attention.head_count_kv", heads):
        return False
    if numbers.get("block_count", 0) < FEWEST_LAYERS.get(family, 1):
        return False
    key = numbers.get("attention.key_length", width / heads)
    if family not in OWN_HEADS and key != width / heads:
        return False
    turned = numbers.get(ROPE_WIDTH, key)
    if turned % 2 or turned > key or (turned < key and family not in PARTLY_TURNED):
        return False
    return numbers.get("attention.value_length", key) == key


def _has_usual_tensors(header: GgufHeader, sizes: dict[str, GgufValue], tokenizer: dict[str, GgufValue]) -> bool:
    """Whether tensors are vectors in 32 bits or matrices that llama.cpp multiplies by, with a row for each token."""
    for _, shape, kind in header.tensors:
        if kind != "F32" if len(shape) == 1 else len(shape) > 2 or kind in NO_MATRIX:
            return False
    embedding = next((tensor.shape for tensor in header.tensors if tensor.name == "token_embd.weight"), None)
    return embedding == (sizes["embedding_length"].value, tokenizer["ggml.tokens"].count)
