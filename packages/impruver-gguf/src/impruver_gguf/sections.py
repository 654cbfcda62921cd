"""The recipe's `gguf` section."""

# ruff: noqa: RUF009  (key() copies its default)
from dataclasses import dataclass
from math import isfinite

from impruver_core.recipe.schema import key
from impruver_core.suggestions import suggest

from impruver_gguf.quantization.quant_types import DEFAULT_LEVELS, NOT_QUANTIZED, QUANT_TYPES, WITH_IMATRIX

# Ollama's own (api.Options), and those that it had once and still takes with a warning.
OLLAMA_PARAMETERS = (
    *("num_keep", "seed", "num_predict", "top_k", "top_p", "min_p", "typical_p", "repeat_last_n", "temperature"),
    *("repeat_penalty", "presence_penalty", "frequency_penalty", "stop"),
    *("num_ctx", "num_batch", "num_gpu", "main_gpu", "use_mmap", "num_thread", "draft_num_predict"),
    *("penalize_newline", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "numa"),
    *("mirostat", "mirostat_tau", "mirostat_eta", "tfs_z"),
)
OUTTYPES = ("f16", "bf16", "f32", "q8_0")


@dataclass(frozen=True)
class LimitsSection:
    """What a level may lose against the unquantized file and still be recommended."""

    kl: float = key(0.05, "the most that its next tokens may diverge (KL, mean over target tokens)")
    top1: float = key(0.9, "the least share of target tokens where both have the same likeliest token")

    def __post_init__(self):
        if not 0 <= self.kl < float("inf"):
            raise ValueError(f"kl must be a number from 0, not {self.kl}")
        if not 0 <= self.top1 <= 1:
            raise ValueError(f"top1 must be a share from 0 to 1, not {self.top1}")


@dataclass(frozen=True)
class GgufSection:
    """How the trained model becomes GGUF files, and what Ollama is told about it."""

    outtype: str = key("f16", "type of the unquantized file", choices=OUTTYPES)
    quantization_levels: list[str] = key(list(DEFAULT_LEVELS), "levels to quantize to, in any case; [] for none")
    system_prompt: str | None = key(None, "system prompt of the Modelfiles; left out: the chat's")
    imatrix: str = key(
        "auto",
        "importance matrix to quantize with: auto (output_dir's, where there is one), none, or an imatrix.gguf",
        local=True,
    )
    num_ctx: int | None = key(
        None,
        "context of the Modelfiles in tokens; left out: the model's limit, at most 8,192 or training's longest row",
    )
    parameters: dict = key({}, "further PARAMETER lines of the Modelfiles, such as temperature or stop (a list)")
    limits: LimitsSection = key(LimitsSection(), "a level beyond one of these is not recommended")

    def __post_init__(self):
        for level in self.quantization_levels:
            _check_level(level.lower(), self.imatrix)
        for name, value in self.parameters.items():
            if name not in OLLAMA_PARAMETERS:
                near = suggest(str(name), OLLAMA_PARAMETERS)
                raise ValueError(f"parameters: {name!r} is no name that a Modelfile can hold{near}")
            for each in value if isinstance(value, list) else [value]:
                # An empty text is no value of a PARAMETER line.
                if not (each if isinstance(each, str) else isinstance(each, (int, float)) and isfinite(each)):
                    raise ValueError(f"parameters: {name}: {each!r} is neither a text, a number nor true or false")
        if self.imatrix not in ("auto", "none") and not self.imatrix.endswith(".gguf"):
            raise ValueError(f"imatrix: {self.imatrix!r} is neither auto, none nor the path of an imatrix.gguf")
        if self.num_ctx is not None and self.num_ctx < 1:
            raise ValueError(f"num_ctx must be at least 1, not {self.num_ctx}")
        further = [level for level in self.quantization_levels if level.lower() != self.outtype]
        if self.outtype == "q8_0" and further:
            raise ValueError(
                f"quantization_levels: {further[0]} can't be made of q8_0, which is quantized itself: set outtype to "
                "f16 or bf16, or quantization_levels to []"
            )


def _check_level(level: str, imatrix: str) -> None:
    if level in WITH_IMATRIX and imatrix == "none":
        raise ValueError(
            f"{level} needs an importance matrix, and imatrix is none: set it to auto or to an imatrix.gguf, or take a "
            "level with more bits",
            "quantization_levels",
        )
    if level in NOT_QUANTIZED:
        raise ValueError(f"{level} quantizes nothing: it is a type for gguf.outtype", "quantization_levels")
    if level not in QUANT_TYPES:
        known = suggest(level, QUANT_TYPES) or f" (valid: {', '.join(QUANT_TYPES)})"
        raise ValueError(f"{level} is no level{known}", "quantization_levels")


SECTIONS = {"gguf": GgufSection}
