"""Images, sounds and files in messages: refused by their kind, as only text can be trained on."""

import re

from impruver_core.errors import RefusedError

KINDS = re.compile(r"image|picture|photo|audio|video|file|document|pdf")
MEDIA_KEYS = frozenset(("image", "images", "video", "videos", "audio", "audios"))


def check_no_media(message: dict, number: int) -> None:
    """RefusedError("bad_row") where message `number` has something other than text, in its content or beside it."""
    kind = next((key for key in sorted(message.keys() & MEDIA_KEYS) if message[key]), None)
    if kind is None and isinstance(message.get("content"), (list, tuple)):
        kinds = (_get_kind(part) for part in message["content"] if isinstance(part, dict))
        kind = next((kind for kind in kinds if KINDS.search(kind)), None)
    if kind is not None:
        raise RefusedError("bad_row", f"message {number} has a part of kind {kind}: only text can be trained on")


def _get_kind(part: dict) -> str:
    """The kind of a part of a content: its `type`, else the key that it has its value under."""
    kind = part.get("type")
    if not isinstance(kind, str):
        kind = next((key for key in part if key != "text" and isinstance(key, str)), "") if "text" not in part else ""
    return kind.lower()
