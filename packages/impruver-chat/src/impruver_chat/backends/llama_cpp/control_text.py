"""Encode prompts with llama.cpp so that what a person says neither ends a turn nor opens another.

llama.cpp parses control tokens in a whole text or not at all. It looks for them first, and tokenizes what stands
between two of them each for itself; so a prompt is cut at those that the chat template wrote, and the pieces are
tokenized without any.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

from impruver_core.chat_template.masking.control_text import (
    ControlText,
    ControlTokens,
    InexactError,
    TemplateInput,
    select_control_tokens,
)
from impruver_core.errors import RefusedError

LSTRIP, RSTRIP = 128, 256  # attributes of tokens that take the blanks before or behind them
BLANKS = " \t\n\v\f\r"


class Vocabulary(Protocol):
    """What is asked of a GGUF file's vocabulary."""

    def tokenize(self, text: str, parse_special: bool = True) -> list[int]:
        """The ids of a text."""

    def get_attr(self, number: int) -> int:
        """llama.cpp's attributes of a token, as bits."""

    def is_control(self, number: int) -> bool:
        """Whether it is a control token."""


def encode_rendering(
    vocab: Vocabulary, given: TemplateInput, added: Mapping[str, int], mode: str, own_tokens: Collection[str] = ()
) -> list[int]:
    """Render and encode a prompt; `added` are the ids of the tokens that llama.cpp finds in texts.

    What becomes of control text in messages, tools and arguments is up to `mode`, as in core's `encode_prompt`.
    RefusedError where the template refuses it, or this does.
    """
    text = given.render()
    ids = vocab.tokenize(text)
    control = {token for token, number in added.items() if vocab.is_control(number)}
    names = select_control_tokens(given.template, control, added.keys() - control, own_tokens)
    tokens = ControlTokens(names, added)
    if mode == "keep" or not tokens.may_occur(text, given):
        return ids
    found = tokens.find_all(text)
    if not tokens.is_in_data(text, given, found):
        return ids
    try:
        marks = tokens.mark_data(text, given)
        quoted = [each for each in found if 1 in marks[each.start : each.stop]]
        if not quoted:
            return ids
        if mode == "refuse":
            raise RefusedError("control_text", tokens.describe(text, given, quoted[0]))
        return _encode_pieces(vocab, text, tokens.find_written(text, marks), added, tokens.tokens, ids)
    except InexactError as error:
        where = tokens.describe_candidates(text, given, found)
        raise RefusedError("control_text", f"{where}: it can't be encoded as text exactly: {error}") from None


def _encode_pieces(
    vocab: Vocabulary,
    text: str,
    written: list[ControlText],
    added: Mapping[str, int],
    control: Collection[str],
    parsed_ids: list[int],
) -> list[int]:
    """The ids of a text in which only the tokens `written` are control tokens; `parsed_ids` are those with all of them.

    InexactError where the pieces, with their control tokens parsed, don't make up the whole, or one can't be text.
    """
    control_ids = {added[token] for token in control}
    parsed, ids = [], []
    stops, starts = [0, *(each.stop for each in written)], [*(each.start for each in written), len(text)]
    tokens = [None, *(added[each.token] for each in written), None]
    for start, stop, before, behind in zip(stops, starts, tokens[:-1], tokens[1:], strict=True):
        piece = str.__str__(text[start:stop])
        piece = piece.lstrip(BLANKS) if before is not None and vocab.get_attr(before) & RSTRIP else piece
        piece = piece.rstrip(BLANKS) if behind is not None and vocab.get_attr(behind) & LSTRIP else piece
        plain = vocab.tokenize(piece, parse_special=False) if piece else []
        if not control_ids.isdisjoint(plain):
            raise InexactError("llama.cpp makes control tokens of any text")
        ends = [behind] if behind is not None else []
        parsed += [*(vocab.tokenize(piece) if piece else []), *ends]
        ids += [*plain, *ends]
    if parsed != parsed_ids:
        raise InexactError("llama.cpp finds its tokens by other rules")
    return ids
