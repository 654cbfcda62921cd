"""What stands in a content given as a list of parts: text, and images, sounds and files, which are refused by kind."""

import re
from typing import Any

from impruver_core.chat_template.masking.train_flags import is_train_flag, split_words
from impruver_core.errors import RefusedError

MEDIA = re.compile(r"(input)?(image|picture|photo|audio|video|file|document|pdf)s?(url|path)?|img")  # a word of a kind
MEDIA_KEYS = frozenset(("image", "images", "video", "videos", "audio", "audios"))
TEXT_KINDS = ("text", "input_text", "output_text")


def check_parts(message: dict, number: int) -> None:
    """RefusedError("bad_row") where message `number` has media, in its content or beside it, or flags in a part."""
    kind = next((key for key in sorted(message.keys() & MEDIA_KEYS) if message[key]), None)
    if kind is None and isinstance(message.get("content"), (list, tuple)):
        parts = [part for part in message["content"] if isinstance(part, dict)]
        kind = next((kind for kind in map(_find_media, parts) if kind), None)
        flag = next((key for part in parts for key, value in part.items() if is_train_flag(key, value)), None)
        if flag is not None and kind is None:
            raise RefusedError(
                "bad_row", f"a part of message {number} has {flag}: flags of training belong to the message, as train"
            )
    if kind is not None:
        raise RefusedError("bad_row", f"message {number} has a part of kind {kind}: only text can be trained on")


def get_kind(part: Any) -> str:
    """The kind of a part of a content: its `type`, else the key that it has its value under; a bare text is text."""
    if not isinstance(part, dict):
        return "text" if isinstance(part, str) else type(part).__name__
    kind = part.get("type")
    if isinstance(kind, str):
        return kind
    return "text" if "text" in part else next((key for key in part if isinstance(key, str)), "none")


def _find_media(part: dict) -> str | None:
    """The kind of a part that is no text, or the key of a text that holds an image or another medium beside it."""
    kind = get_kind(part)
    if _names_media(kind):
        return kind.lower()
    return next(
        (key for key, value in part.items() if key not in ("type", "text") and value and _names_media(key)), None
    )


def _names_media(name: Any) -> bool:
    return isinstance(name, str) and any(map(MEDIA.fullmatch, split_words(name)))
