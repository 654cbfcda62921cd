"""The rows that a GGUF is proven on: output_dir's heldout.jsonl, else a small set that comes with this package."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from impruver_core.chat_template.masking.loss_mask import encode_chat
from impruver_core.chat_template.masking.message_normalization import normalize_messages
from impruver_core.chat_template.rendering.renderer import render_template
from impruver_core.chat_template.selection import TemplateSelector
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.io.json_schema import OBJECT, TEXT, WHOLE, check_keys, list_of
from impruver_core.io.jsonl import read_numbered_rows
from impruver_core.labels import IGNORE_INDEX
from impruver_core.tokenizer import plain_encoder

from impruver_gguf.vocab.saved_tokenizer import SavedTokenizer

BUILT_IN = Path(__file__).with_name("heldout.jsonl")


MOST_ROWS, MOST_TOKENS, MOST_LEARNED = 32, 4096, 2048  # of which logits are taken


MOST_ANSWERS = 4


ANSWER_ROOM = (32, 2, 160)  # tokens that an answer may have: so many and twice the row's own, at most so many


ROW_KEYS = {
    "text": TEXT,
    **dict.fromkeys(("input_ids", "labels"), list_of(WHOLE)),
    "tools": list_of(OBJECT),
    "chat_template_kwargs": OBJECT,
}


@dataclass(frozen=True)
class Row:
    """A row rendered: its text, the tokenizer's ids of it, and what was trained (or would be) with its labels."""

    where: str  # file and line
    text: str
    text_ids: list[int]
    ids: list[int]
    labels: list[int]
    chat: dict[str, Any] | None = None  # what it was rendered from, and what asks for its last answer
    prompt: list[int] | None = None  # ids up to the last answer

    @property
    def learned(self) -> list[int]:
        """The positions whose logits foretell a learned token."""
        return [at - 1 for at, label in enumerate(self.labels) if at and label != IGNORE_INDEX]


@dataclass
class HeldOut:
    """All rows, those that logits are taken of, and what was left out."""

    rows: list[Row] = field(default_factory=list)
    measured: list[Row] = field(default_factory=list)
    asked: list[tuple[list[int], int]] = field(default_factory=list)  # prompts, and the room for their answers
    refused: list[str] = field(default_factory=list)


def read_heldout(output_dir: Path, tokenizer: SavedTokenizer, kwargs: dict[str, Any], longest: int | None) -> HeldOut:
    """The rows for a model whose context holds `longest` tokens; `kwargs` are the recipe's chat_template_kwargs."""
    path = output_dir / "heldout.jsonl"
    lines = list(read_numbered_rows(path)) if path.is_file() else []
    found = _encoded(lines or read_numbered_rows(BUILT_IN), path if lines else None, tokenizer, kwargs)
    if lines and not found.rows:
        raise ImpruverError(f"no row can be used: {found.refused[0]}; move the file away to use the built-in set")
    tokens = learned = 0
    for row in found.rows:
        more, further = tokens + len(row.ids), learned + len(row.learned)
        fits = more <= MOST_TOKENS and further <= MOST_LEARNED and len(row.ids) <= (longest or len(row.ids))
        if fits and len(found.measured) < MOST_ROWS and row.learned:
            found.measured.append(row)
            tokens, learned = more, further
    base, factor, most = ANSWER_ROOM
    for row in found.rows:
        room = min(base + factor * len(row.learned), most)
        if row.prompt and len(found.asked) < MOST_ANSWERS and len(row.prompt) + room <= (longest or MOST_TOKENS):
            found.asked.append((row.prompt, room))
    return found


def _encoded(lines: Iterable, path: Path | None, tokenizer: SavedTokenizer, kwargs: dict[str, Any]) -> HeldOut:
    found, templates = HeldOut(), TemplateSelector(tokenizer)
    for number, line in lines:
        where = f"{path}, line {number}" if path else f"the built-in set, line {number}"
        _check_text(line, where)
        check_keys(line, ROW_KEYS, where)
        try:
            made = list(_rows(line, where, tokenizer, templates, kwargs, built_in=path is None))
        except RefusedError as error:
            found.refused.append(f"{where}: {error.detail}")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ImpruverError(f"{where}: no row of messages or text ({type(error).__name__}: {error})") from None
        else:
            found.rows += [row for row in made if row.text_ids]
            if path and not any(row.text_ids for row in made):
                found.refused.append(f"{where}: it has no messages and no text")
    return found


def _check_text(line: dict, where: str) -> None:
    """Half a character, as JSON can write one, is none that a tokenizer takes."""
    try:
        json.dumps(line, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ImpruverError(f"{where}: half a character (a lone surrogate); mend the row or take it out") from None


def _rows(
    line: dict, where: str, tokenizer, templates: TemplateSelector, kwargs: dict, built_in: bool
) -> Iterator[Row]:
    if "messages" in line and (tokenizer.chat_template or not built_in):
        yield _chat(line, where, tokenizer, templates, kwargs)
    elif "messages" in line:  # a model without a chat template has seen no chats
        yield _document({"text": line["messages"][-1]["content"]}, where, tokenizer)
    elif line.get("text") is not None:
        yield _document(line, where, tokenizer)


def _chat(line: dict, where: str, tokenizer: SavedTokenizer, templates: TemplateSelector, kwargs: dict) -> Row:
    messages, tools = line["messages"], line.get("tools")
    named = {**kwargs, **(line.get("chat_template_kwargs") or {})}
    template, variables, shape = templates.select(tools, named)
    prepared = normalize_messages(messages, shape)
    chat = {"messages": prepared, "tools": tools, "template": template, "variables": variables, "kwargs": named}
    chat["before"], chat["prompt"] = _asked(chat)
    text = str.__str__(render_template(template, prepared, tools, variables=variables))
    trained = _trained(line, where, tokenizer)
    if trained is None:
        encoded = encode_chat(tokenizer, messages, tools, chat_template_kwargs=named)
        trained = encoded.input_ids, encoded.labels
    ids, labels = trained
    text_ids = _ids(tokenizer, text)
    bos = ids[:1] if ids[:1] == [tokenizer.bos_token_id] != text_ids[:1] else []
    prompt = bos + _ids(tokenizer, chat["prompt"]) if chat["prompt"] else None
    return Row(where, text, text_ids, ids, labels, chat, prompt)


def _asked(chat: dict[str, Any]) -> tuple[list[dict] | None, str | None]:
    """What stands before the last answer, as messages and as the text that asks for it; None where nobody answers."""
    prepared, variables = chat["messages"], chat["variables"]
    last = max((at for at, message in enumerate(prepared) if message["role"] == "assistant"), default=0)
    if not last:
        return None, None
    try:
        text = render_template(
            chat["template"], prepared[:last], chat["tools"], add_generation_prompt=True, variables=variables
        )
    except RefusedError:
        return None, None
    return prepared[:last], str.__str__(text)


def _document(line: dict, where: str, tokenizer: SavedTokenizer) -> Row:
    text_ids = _ids(tokenizer, line["text"])
    ids, labels = _trained(line, where, tokenizer) or (text_ids, [IGNORE_INDEX, *text_ids[1:]])
    return Row(where, line["text"], text_ids, ids, labels)


def _trained(line: dict, where: str, tokenizer: SavedTokenizer) -> tuple[list[int], list[int]] | None:
    """(ids, labels) as compose made them; None where the row has none."""
    ids, labels = line.get("input_ids"), line.get("labels")
    if ids is None or labels is None:
        return None
    numbers = [*ids, *(set(labels) - {IGNORE_INDEX})]
    if len(ids) != len(labels) or not all(0 <= number < tokenizer.size for number in numbers):
        raise ImpruverError(
            f"{where}: input_ids and labels are not this tokenizer's, or of two lengths; take the heldout.jsonl that "
            "training left, or move it away to use the built-in set"
        )
    return ids, labels


def _ids(tokenizer: SavedTokenizer, text: str) -> list[int]:
    with plain_encoder(tokenizer) as encode:
        return list(encode([text])[0].ids)
