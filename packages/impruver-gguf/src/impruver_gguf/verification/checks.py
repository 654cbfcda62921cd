"""Whether what llama.cpp told of a file is what output_dir's tokenizer and rows say."""

from __future__ import annotations

from typing import Any

from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.cli.console import warn

from impruver_gguf.verification.heldout import HeldOut, Row
from impruver_gguf.verification.measure_worker import PLAIN
from impruver_gguf.vocab.chat_template_export import without_generation
from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer, differ_in_blanks

AROUND = 6  # ids told on each side of a difference


SHOWN = 300  # characters of a row


def failure_of(told: dict[str, Any], held: HeldOut, tokenizer: SavedTokenizer) -> tuple[str | None, bool | None]:
    """(what is wrong with a file, whether all its ids are the tokenizer's)."""
    if "error" in told:
        return told["error"], None
    blanks = 0
    for row, ids in zip(held.rows, told["ids"], strict=True):
        if ids == row.text_ids:
            continue
        if not differ_in_blanks(ids, row.text_ids, tokenizer):
            return _other_ids(row, ids), False
        blanks += 1
    if blanks:
        warn(f"{blanks} of {len(held.rows)} rows: llama.cpp and the tokenizer differ on blanks at the start of a text")
    if told["tokens"] < tokenizer.size:
        return f"it has {told['tokens']:,} tokens, the tokenizer {tokenizer.size:,}", False
    failure = _other_template(told["templates"], held, tokenizer) or _never_ends(told)
    return failure, not blanks if held.rows else None


def _other_ids(row: Row, ids: list[int]) -> str:
    pairs = enumerate(zip(ids, row.text_ids, strict=False))
    at = next((at for at, (one, other) in pairs if one != other), min(len(ids), len(row.text_ids)))
    around = slice(max(0, at - AROUND), at + AROUND)
    text = row.text if len(row.text) <= SHOWN else f"{row.text[:SHOWN]}…"
    return (
        f"llama.cpp's token ids are not the tokenizer's in {row.where}, from token {at} on: llama.cpp "
        f"{ids[around]}, tokenizer.json {row.text_ids[around]}; the row: {text!r}"
    )


def _other_template(templates: dict[str, str], held: HeldOut, tokenizer: SavedTokenizer) -> str | None:
    """What is wrong with the chat templates in a file: other texts, or another rendering without generation tags."""
    own = tokenizer.chat_template
    own = own if isinstance(own, dict) else {"default": own} if own else {}
    there = {text: templates.get(_key(name)) for name, text in own.items()}
    for name, text in own.items():
        if there[text] not in (text, without_generation(text)):
            return f"{_key(name)} is not the tokenizer's own; in the file: {there[text]!r}; the tokenizer's: {text!r}"
    for row in held.rows:
        if not row.chat or there.get(row.chat["template"], row.chat["template"]) == row.chat["template"]:
            continue
        chat = row.chat
        found = render_template(there[chat["template"]], chat["messages"], chat["tools"], variables=chat["variables"])
        if found != row.text:
            return f"its template renders {row.where} otherwise: {found!r}; the tokenizer's: {row.text!r}"
    return None


def _key(name: str) -> str:
    return "tokenizer.chat_template" + ("" if name == "default" else f".{name}")


def _never_ends(told: dict[str, Any]) -> str | None:
    """A model that has learned where its turns end must end an answer by itself."""
    right, ends = told.get("ended", (0, 0))
    answers = told.get("answers") or []
    if answers and not any(ended for _, ended in answers) and "kl" not in told and ends and 2 * right >= ends:
        return (
            f"no greedy answer ended by itself ({len(answers)} tried), though an end of turn is the likeliest token at "
            f"{right} of {ends} ends of held-out answers"
        )
    return None


def warn_about(told: dict[str, Any], ids: list[int], tokenizer: SavedTokenizer) -> None:
    """Warns where a file differs without being wrong; `ids` end a turn."""
    unknown = [tokenizer.backend_tokenizer.id_to_token(number) for number in ids if number not in told.get("eog", ids)]
    if unknown:
        warn(f"llama.cpp itself does not stop at {', '.join(unknown)}; Ollama does, by the Modelfile's stop")
    answers = told.get("answers") or []
    if answers and not any(ended for _, ended in answers):
        warn(f"none of {len(answers)} greedy answers ended by itself: the model has not learned where a turn ends")
    if "plain" in told and (around := tokenizer.backend_tokenizer.encode(PLAIN).ids) != told["plain"]:
        warn(f"around plain text llama.cpp and the tokenizer put other tokens: {told['plain']} and {around} for 'a'")
