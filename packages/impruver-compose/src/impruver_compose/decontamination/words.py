"""The texts of conversations and rows, and the words by which they are compared with benchmarks.

Words as in GPT-3 (Brown et al., "Language Models are Few-Shot Learners", appendix C) and in lm-eval's decontamination:
lower-cased, punctuation removed, split at blanks. For texts in any language: case is folded, forms of one character
are made one (NFKC), marks that compose with no letter are removed, as stress in Russian, and each character of a
script that is written without blanks is a word.
"""

import re
import unicodedata
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

from impruver_core.io.json_keys import parse_unique_json

UNSPACED = re.compile(  # Thai, Lao, Burmese, Khmer, Kana, Han
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
LOWER_ASCII = bytes(range(256)).lower()
ASCII_PUNCTUATION = bytes(n for n in range(128) if not (chr(n).isalnum() or chr(n).isspace()))
PIECE = 1 << 20  # characters of a text whose words are in memory at once


class _CharacterTable(dict):
    """For str.translate: punctuation and marks go, characters of scripts without blanks stand between blanks."""

    def __missing__(self, code: int) -> str | None:
        character = chr(code)
        kept = character if character.isalnum() or character.isspace() else None
        self[code] = f" {kept} " if kept and UNSPACED.match(kept) else kept
        return self[code]


_CHARACTERS = _CharacterTable()


def split_words(text: str) -> list[str]:
    """Splits a text into its words."""
    if text.isascii():
        return text.encode().translate(LOWER_ASCII, ASCII_PUNCTUATION).decode().split()
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    return text.translate(_CHARACTERS).split()


def split_long_text(text: str) -> Iterator[str]:
    """Splits a text at blanks into pieces of about a million characters, whose words are those of the text."""
    start = 0
    while len(text) - start > PIECE:
        blank = re.compile(r"\s").search(text, start + PIECE)
        if blank is None:
            break
        yield text[start : blank.start()]
        start = blank.start()
    yield text[start:]


def list_row_texts(row: dict) -> Iterator[str]:
    """Lists all texts of a row of val.jsonl: of its messages, of its tools and template arguments, or the document."""
    if "messages" not in row:
        yield row["text"]
        return
    for message in row["messages"]:
        yield from list_message_texts(message)
    yield from list_texts(row.get("tools"))
    yield from list_texts(row.get("chat_template_kwargs"))


def list_message_texts(message: dict) -> Iterator[str]:
    """Lists all that a message says, in any of its keys: content, reasoning, arguments of its calls."""
    for name, value in message.items():
        if name == "content" and isinstance(value, list):
            texts = [part.get("text") if isinstance(part, dict) else part for part in value]
            yield "".join(text for text in texts if isinstance(text, str))  # as templates join them
            yield from list_texts([part for part, text in zip(value, texts, strict=True) if not isinstance(text, str)])
        elif name != "role":
            yield from list_texts(value)


def list_texts(value: Any) -> Iterator[str]:
    """Lists the strings within a value of JSON types; of one that is JSON text, as arguments are, those in it, too."""
    if isinstance(value, str):
        yield value
        if value.lstrip()[:1] in ("{", "["):  # its first and last words would hold on to names of keys
            with suppress(ValueError, RecursionError):
                yield from list_texts(parse_unique_json(value))
    elif isinstance(value, (dict, list)):
        for item in value.values() if isinstance(value, dict) else value:
            yield from list_texts(item)


def locate_words(text: str, words: list[str], run: int) -> tuple[int, int] | None:
    """Locates in a text `run` words that begin with these, as (start, stop) of characters; None if nowhere."""
    found = [(word, chunk.span()) for chunk in re.finditer(r"\S+", text) for word in split_words(chunk[0])]
    own = [word for word, _ in found]
    for start in range(len(own) - len(words) + 1):
        if own[start] == words[0] and own[start : start + len(words)] == words:
            return found[start][1][0], found[min(start + run, len(found)) - 1][1][1]
    return None
