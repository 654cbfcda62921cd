"""The recipe's section that impruver-chat owns."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from impruver_core.recipe.schema import key

FROM_MODEL = "left out: generation_config.json's, else"
INT32_MAX = 2**31 - 1  # llama.cpp takes no larger whole number

# Beyond 1e-4 and 1e4 the probabilities of a model may be no numbers any more.
RANGES = {
    "max_new_tokens": (lambda value: 1 <= value <= INT32_MAX, f"must be from 1 to {INT32_MAX}"),
    "repetition_penalty": (lambda value: 1e-4 <= value <= 1e4, "must be from 0.0001 to 10000"),
    "temperature": (lambda value: value == 0 or 1e-4 <= value <= 1e4, "must be 0, or from 0.0001 to 10000"),
    "top_p": (lambda value: 0 < value <= 1, "must be above 0 and at most 1"),
    "top_k": (lambda value: 0 <= value <= INT32_MAX, f"must be from 0 to {INT32_MAX}"),
    "batch_size": (lambda value: 1 <= value <= 4096, "must be from 1 to 4096"),
    "history_limit": (lambda value: 0 <= value <= INT32_MAX, f"must be from 0 to {INT32_MAX}"),
}


@dataclass(frozen=True)
class ChatSection:
    """How the trained model is talked to."""

    history_limit: int | None = key(
        None,
        "messages that a prompt holds at most, cut at whole turns; the system prompt stays; left out: what the model's "
        "context holds",
    )
    system_prompt: str | None = key(None, "what stands before every conversation, and before rows with a `prompt`")
    batch_size: int = key(32, "questions of --input that are answered at once, at most; fewer where they are long")
    max_new_tokens: int | None = key(None, f"longest answer in tokens; {FROM_MODEL} 200")
    repetition_penalty: float | None = key(None, f"1 is none; {FROM_MODEL} 1.2 (1 with --input)")
    do_sample: bool | None = key(None, f"false takes the likeliest token each time; {FROM_MODEL} true (--input: false)")
    temperature: float | None = key(None, f"0 takes the likeliest token each time; {FROM_MODEL} 0.5")
    top_p: float | None = key(None, f"share of the likeliest tokens to draw from; {FROM_MODEL} 0.6")
    top_k: int | None = key(None, f"number of the likeliest tokens to draw from, 0 is all; {FROM_MODEL} 40")

    def __post_init__(self):
        for name, fault in find_out_of_range(vars(self)).items():
            raise ValueError(fault, name)
        try:
            (self.system_prompt or "").encode()
        except UnicodeEncodeError:
            raise ValueError("is no UTF-8", "system_prompt") from None


def find_out_of_range(values: Mapping[str, Any]) -> dict[str, str]:
    """Find the numbers that are out of range, by name, and say what is wrong; None is left out."""
    return {
        name: f"{wanted}, not {values[name]:{'g' if isinstance(values[name], float) else ''}}"
        for name, (holds, wanted) in RANGES.items()
        if values.get(name) is not None and not holds(values[name])
    }


SECTIONS = {"chat": ChatSection}
