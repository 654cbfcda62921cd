"""Which type llama.cpp gives each tensor of a file that is quantized to a level: its rules, in our own words.

The source is llama.cpp's src/llama-quant.cpp. A level has a type of its own, and tensors that lose more get another:
the output, the values of attention, what comes down in the first layers. Rows that are no whole blocks fall back.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from impruver_core.errors import ImpruverError
from impruver_core.io.gguf_file import TENSOR_TYPES, GgufTensor

TYPE_NUMBERS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
BLOCKS = {name: block for name, block, _ in TENSOR_TYPES.values()}  # values that are quantized together
LOWEST = ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq2_m")
OWN_TYPES = {  # of levels that are not called as their type
    **{level: level.upper() for level in ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0", "q1_0", "tq1_0", "tq2_0")},
    **{level: level.upper() for level in ("iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq3_xxs", "iq3_s", "iq4_nl")},
    **dict.fromkeys(("q2_k", "q2_k_s"), "Q2_K"),
    **dict.fromkeys(("q3_k_s", "q3_k_m", "q3_k_l"), "Q3_K"),
    **dict.fromkeys(("q4_k_s", "q4_k_m"), "Q4_K"),
    **dict.fromkeys(("q5_k_s", "q5_k_m"), "Q5_K"),
    "q6_k": "Q6_K",
    "iq2_s": "IQ2_XS",
    "iq2_m": "IQ2_S",
    "iq3_xs": "IQ3_S",
    "iq3_m": "IQ3_S",
    "iq4_xs": "IQ4_XS",
    "mxfp4_moe": "MXFP4",
}
# A type of blocks of 256 → the one of blocks of 32 in its place.
FALLBACKS = {
    **dict.fromkeys(("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"),
    **dict.fromkeys(("Q2_K", "Q3_K", "TQ1_0", "TQ2_0"), "Q4_0"),
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
}
NEEDS_MATRIX = ("IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S")
EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
OUTPUT = "output.weight"
NOT_QUANTIZED = re.compile(
    r"_norm\.weight|ffn_gate_inp\.weight|altup|laurel|per_layer_model_proj|ssm_conv1d|shortconv\.conv\.weight"
    r"|indexer\.[kq]_proj\.weight|time_mix_(first|[wvag][0-2]|decay_w[12]|lerp_fused)\.weight|attn_rel_b\.weight"
    r"|\.position_embd|^position_embd\.weight|^token_types\.weight|\.rel_pos|\.patch_embd|\.patch_merger"
)
# What is tried for first comes first: a part of the name → the kind of tensor.
KINDS = {
    "attn_qkv.weight": "value",
    "attn_kv_b.weight": "value",
    "attn_v.weight": "value",
    "attn_k.weight": "key",
    "attn_q.weight": "query",
    "attn_output.weight": "attention_output",
    "ffn_up": "up",
    "ffn_gate": "gate",
    "ffn_down": "down",
}
OTHER_RULES = ("falcon", "glm5-next", "bailingmoe3", "deepseek4")  # architectures that have rules of their own
LAYERS_OF_70B = {"llama": 80, "qwen2": 80, "deci": 80, "olmo": 80, "jais2": 68}


@dataclass(frozen=True)
class ModelSizes:
    """What the rules ask of a model: llama.cpp's name of its architecture, and its first layer's heads."""

    architecture: str
    layers: int
    heads: int
    kv_heads: int
    experts: int = 0

    @property
    def queries_per_key(self) -> int:
        """How many query heads share a key head; 0 without any."""
        return self.heads // self.kv_heads if self.kv_heads else 0

    @property
    def is_70b(self) -> bool:
        """Whether it is one of the models that llama.cpp calls 70B."""
        as_llama = self.architecture != "llama" or (self.heads != self.kv_heads and self.experts != 8)
        return LAYERS_OF_70B.get(self.architecture) == self.layers and as_llama


@dataclass
class TypeRules:
    """The rules for a level on a model; `counts` are how many tensors of a kind have had their type."""

    level: str
    model: ModelSizes
    has_matrix: bool
    value_count: int  # how many tensors are values of attention
    tied: bool  # the embeddings are the output, too
    counts: dict[str, int] = field(default_factory=dict)

    def choose(self, name: str, shape: Sequence[int]) -> str:
        """Choose the type of the next tensor in llama.cpp's order, of `shape` with the row's size first."""
        own = OWN_TYPES[self.level]
        if name == OUTPUT or (self.tied and name in EMBEDDINGS):
            kind = self._choose_for_output(own, shape[0])
        elif self.level == "mxfp4_moe":
            kind = "MXFP4" if len(shape) > 2 and shape[2] > 1 else "Q8_0"
        elif name in EMBEDDINGS:
            kind = self._choose_for_embeddings(own)
        else:
            part = next((kind for text, kind in KINDS.items() if text in name), "")
            kind = self._choose_for_layer(part, name) or own
        return fall_back(kind, shape[0])

    def _choose_for_output(self, own: str, width: int) -> str:
        if self.level == "mxfp4_moe" or width % BLOCKS[own]:
            return "Q8_0"
        if self.level in (*LOWEST, "iq3_xxs"):
            return "Q5_K"
        return own if own == "Q8_0" else "Q6_K"

    def _choose_for_embeddings(self, own: str) -> str:
        if self.level in ("iq2_xxs", "iq2_xs", "iq1_s", "iq1_m"):
            return "Q2_K"
        if self.level in ("iq2_s", "iq2_m", "iq3_xxs"):
            return "IQ3_S"
        return "Q4_K" if self.level in ("tq1_0", "tq2_0") else own

    def _choose_for_layer(self, part: str, name: str) -> str | None:
        """Choose the type of a layer's tensor by what it is; None for the level's own."""
        index = self.counts.get(part, 0)
        self.counts[part] = index + 1
        if self.level in LOWEST:
            return self._choose_in_lowest(part, index)
        if part in ("down", "up", "gate") and self.model.experts > 1:  # tensors of experts come in any order
            index = get_layer(name)
        choose = {
            "value": self._choose_for_values,
            "key": self._choose_for_keys,
            "query": self._choose_for_queries,
            "attention_output": self._choose_for_attention_output,
            "down": self._choose_for_down,
            "up": self._choose_for_up,
            "gate": self._choose_for_up,
        }.get(part)
        return choose(index) if choose else None

    def _choose_in_lowest(self, part: str, index: int) -> str | None:
        model, better = self.model, "IQ3_S" if self.level in ("iq2_s", "iq2_m") else "Q2_K"
        if part == "value":
            return "Q4_K" if model.queries_per_key >= 4 or model.experts >= 4 else better
        if part == "key" and model.experts == 8:
            return "Q4_K"
        if part == "down" and index < model.layers // 8:
            return better
        if part == "attention_output":
            if model.experts == 8:
                return "Q5_K"
            return {"iq1_s": "IQ2_XXS", "iq1_m": "IQ2_XXS", "iq2_s": "IQ3_S", "iq2_m": "IQ3_S"}.get(self.level)
        return None

    def _choose_for_values(self, index: int) -> str:
        level, shared = self.level, self.model.queries_per_key >= 4
        kind = {"iq3_m": "Q4_K", "q3_k_l": "Q5_K"}.get(level, OWN_TYPES[level])
        if level == "q2_k":
            kind = "Q4_K" if shared else "Q3_K"
        elif shared and level in ("q2_k_s", "iq3_xxs", "iq3_xs", "iq3_s"):
            kind = "Q4_K"
        elif shared and level in ("iq4_nl", "iq4_xs"):
            kind = "Q5_K"
        elif level == "iq3_xxs" and not self.has_matrix:
            kind = "IQ3_S"
        elif level == "q3_k_m":
            kind = "Q5_K" if index < 2 else "Q4_K"
        elif level in ("q4_k_m", "q5_k_m") and uses_more_bits(index, self.value_count):
            kind = "Q6_K"
        elif level == "q4_k_s" and index < 4:
            kind = "Q5_K"
        if self.model.is_70b and kind in ("Q3_K", "Q4_K"):
            kind = "Q5_K"
        return "Q8_0" if self.model.experts == 8 else kind

    def _choose_for_keys(self, index: int) -> str | None:
        return "Q8_0" if self.model.experts == 8 else self._choose_for_queries(index)

    def _choose_for_queries(self, _: int) -> str | None:
        return {"iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S"}.get(self.level)

    def _choose_for_attention_output(self, _: int) -> str | None:
        if self.model.experts == 8:
            levels = ("q2_k", "iq3_xs", "iq3_xxs", "q3_k_s", "q3_k_m", "iq4_nl", "q4_k_s", "q4_k_m", "iq3_s", "iq3_m")
            return "Q5_K" if self.level in (*levels, "iq4_xs") else None
        kinds = {"q2_k": "Q3_K", "iq3_xxs": "IQ3_S", "q3_k_m": "Q4_K", "q3_k_l": "Q5_K", "iq3_m": "Q4_K"}
        return kinds.get(self.level)

    def _choose_for_down(self, index: int) -> str | None:
        level, layers = self.level, self.model.layers
        early, more = index < layers // 8, uses_more_bits(index, layers)
        always = {"q2_k": "Q3_K", "q3_k_m": "Q5_K" if index < layers // 16 else "Q4_K", "q3_k_l": "Q5_K"}
        if level in always:
            return always[level]
        if level in ("q4_k_m", "q5_k_m"):
            return "Q6_K" if more else None
        if level == "iq3_m":
            return "Q4_K" if early or (self.model.experts == 8 and more) else None
        if level == "iq3_xxs" and not self.has_matrix:
            return "Q4_K" if early else "Q3_K"
        if not early:
            return None
        if level in ("iq4_nl", "iq4_xs"):
            return None if self.has_matrix else "Q5_K"
        if level in ("q4_0", "q5_0"):
            return level[:-1].upper() + "1" if self.has_matrix else None
        return {"q2_k_s": "Q4_K", "q4_k_s": "Q5_K"}.get(level)

    def _choose_for_up(self, index: int) -> str | None:
        layers = self.model.layers
        return "IQ3_XXS" if self.level == "iq3_xs" and layers // 8 <= index < 7 * layers // 8 else None


def choose_level_types(
    level: str, model: ModelSizes, tensors: Sequence[GgufTensor], has_matrix: bool
) -> dict[str, str]:
    """Choose the type of each tensor, by name and in the order in which llama.cpp writes them; ImpruverError."""
    if model.architecture in OTHER_RULES:
        raise ImpruverError(
            f"gguf.imatrix: llama.cpp has rules of its own for the types of {model.architecture}, which are not known "
            "here: set it to none"
        )
    ordered = sorted(tensors, key=lambda tensor: (get_layer(tensor.name), tensor.name))
    names = [tensor.name for tensor in ordered]
    values = sum(next((kind for text, kind in KINDS.items() if text in name), "") == "value" for name in names)
    rules = TypeRules(level, model, has_matrix, values, OUTPUT not in names)
    return {
        tensor.name: rules.choose(tensor.name, tensor.shape) if is_quantized(tensor) else tensor.type
        for tensor in ordered
    }


def is_quantized(tensor: GgufTensor) -> bool:
    """Whether llama.cpp quantizes a tensor at all: matrices that are no norms, gates, convolutions or the like."""
    matrix = any(size > 1 for size in tensor.shape[1:])
    return matrix and tensor.name.endswith("weight") and not NOT_QUANTIZED.search(tensor.name)


def needs_matrix(name: str, kind: str, level: str) -> bool:
    """Whether llama.cpp refuses to quantize a tensor to this type without an importance matrix."""
    if name == OUTPUT or name in EMBEDDINGS:
        return False
    return kind in NEEDS_MATRIX or (kind == "Q2_K" and level == "q2_k_s")


def fall_back(kind: str, width: int) -> str:
    """The type that stands in for `kind` where rows of `width` values are no whole blocks of it."""
    if width % BLOCKS[kind] == 0:
        return kind
    if BLOCKS[kind] > 32:
        kind = FALLBACKS[kind]
    return "F16" if width % BLOCKS[kind] else kind


def uses_more_bits(index: int, count: int) -> bool:
    """Whether it is one of the layers to which mixed levels give more: the first, the last, each third between."""
    return index < count // 8 or index >= 7 * count // 8 or (index - count // 8) % 3 == 2


def get_layer(name: str) -> int:
    """The number of a tensor's layer, -1 for one outside all layers."""
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1
