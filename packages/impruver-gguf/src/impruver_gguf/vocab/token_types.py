"""What GGUF holds of a tokenizer, whichever kind it is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.tokenizer import NAMED_TOKENS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # GGUF's token types


WORD_BORDER = "\u2581"  # SentencePiece's blank


@dataclass(frozen=True)
class Vocabulary:
    """Tokens with their types (and scores) by id, the pre-tokenizer's name; `config` is tokenizer_config.json."""

    tokens: list[str]
    types: list[int]
    pre: str
    config: dict[str, Any]
    folder: Path
    scores: list[float] | None = None

    @property
    def sentencepiece(self) -> bool:
        """Whether tokens have scores, by which they are put together."""
        return self.scores is not None


def padding(number: int) -> str:
    """What stands for an id that no token has."""
    return f"[PAD{number}]"


def added_token(text: str, special: bool) -> tuple[str, int]:
    """An added token's text and type."""
    if special or _looks_special(text):
        return text, CONTROL
    return text.replace(WORD_BORDER, " "), USER_DEFINED


def _looks_special(text: str) -> bool:
    """llama.cpp's rule for tokens that some models forgot to mark."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def named_tokens(config: dict[str, Any]) -> dict[str, str]:
    """bos_token, eos_token, … of a tokenizer_config.json, as texts."""
    texts = {name: config.get(name) for name in NAMED_TOKENS}
    texts = {name: text.get("content") if isinstance(text, dict) else text for name, text in texts.items()}
    return {name: text for name, text in texts.items() if isinstance(text, str) and text}
