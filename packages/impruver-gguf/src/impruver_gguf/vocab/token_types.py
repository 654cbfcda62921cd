"""What GGUF holds of a tokenizer, whichever kind it is: `Vocabulary`, and llama.cpp's types of tokens."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from gguf import TokenType
from impruver_core.errors import ImpruverError

WORD_BORDER = "\u2581"  # SentencePiece's blank


@dataclass(frozen=True)
class Vocabulary:
    """Texts, types and (with SentencePiece) scores of all tokens by id.

    `pre` is the pre-tokenizer's name, `config` tokenizer_config.json, `folder` where the tokenizer's files are.
    """

    tokens: list[str]
    types: list[int]
    pre: str
    config: dict[str, Any]
    folder: Path
    scores: list[float] | None = None

    @property
    def is_sentencepiece(self) -> bool:
        """Whether tokens have scores, by which they are put together."""
        return self.scores is not None


class Token(NamedTuple):
    """A token's text and GGUF's type of it."""

    text: str
    type: TokenType


def make_padding(token_id: int) -> Token:
    """Make what stands for an id that no token has."""
    return Token(f"[PAD{token_id}]", TokenType.UNUSED)


def make_added_token(text: str, special: bool) -> Token:
    """Make an added token as llama.cpp's converter does: control tokens as they are, others with real blanks."""
    if special or _has_special_form(text):
        return Token(text, TokenType.CONTROL)
    return Token(text.replace(WORD_BORDER, " "), TokenType.USER_DEFINED)


def _has_special_form(text: str) -> bool:
    """llama.cpp's rule for control tokens that some models forgot to mark as such."""
    return (
        text in ("<pad>", "<mask>", "<2mass>", "[@BOS@]")
        or (text.startswith("<|") and text.endswith("|>"))
        or (text.startswith("<｜") and text.endswith("｜>"))
        or (text.startswith("<unused") and text.endswith(">"))
    )


def check_vocab_size(folder: Path, largest_id: int, size: int) -> None:
    """Raise ImpruverError where the tokenizer has ids that the model has no embedding rows for."""
    if largest_id >= size:
        raise ImpruverError(
            f"{folder}: the tokenizer has ids up to {largest_id}, the model {size} embedding rows: this is not its "
            "tokenizer, or its new tokens' rows were not saved"
        )
