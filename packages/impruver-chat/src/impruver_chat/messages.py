"""Messages as rows and conversations have them: roles, contents of text parts, and what makes one unusable."""

from collections.abc import Sequence
from typing import Any

ANSWER_ROLES = ("assistant", "function_call")
RESPONSE_ROLES = ("tool", "function_response")
TEXT_ROLES = ("system", "developer", "user", "assistant")
ROLES = (*TEXT_ROLES[:3], *RESPONSE_ROLES, *ANSWER_ROLES)
TEXT_PARTS = ("text", "input_text", "output_text")  # the types that the usual interfaces have for them


def make_system_messages(system_prompt: str | None) -> list[dict]:
    """Make the messages that stand before a conversation: the system's, or none."""
    return [{"role": "system", "content": system_prompt}] if system_prompt else []


def join_text_parts(content: Any) -> Any:
    """Join a content of text parts to the text that they are; any other content is returned as it is."""
    if isinstance(content, list) and content and all(get_part_text(part) is not None for part in content):
        return "".join(map(get_part_text, content))
    return content


def join_contents(messages: Sequence[dict]) -> list[dict]:
    """Join the contents of text parts in messages."""
    return [
        message | {"content": join_text_parts(message["content"])}
        if isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def get_part_text(part: Any) -> str | None:
    """The text of a part, `{"type": "text", "text": …}` or a text itself; None for any other, as an image is."""
    if isinstance(part, dict) and part.get("type", TEXT_PARTS[0]) in TEXT_PARTS:
        part = part.get("text")
    return part if isinstance(part, str) else None


def find_fault(messages: Sequence[dict]) -> str | None:
    """Find why messages can't be asked: what a chat template would pass over or take for empty."""
    for number, message in enumerate(messages):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            has_role = f"the role {role!r}" if "role" in message else "no role"
            return f"message {number} has {has_role}; there are {', '.join(ROLES)}"
        if content is None and not (role == "assistant" and message.get("tool_calls")):
            return f"message {number} ({role}) has no content"
        if role in TEXT_ROLES and isinstance(content, list):
            return f"message {number} ({role}) has a list as content, not a text: {describe_parts(content)}"
    return None


def describe_parts(parts: list) -> str:
    """Describe the first of a content's parts that is no text."""
    for number, part in enumerate(parts):
        if get_part_text(part) is None:
            kind = part.get("type") if isinstance(part, dict) else None
            what = f"is of type {str(kind)[:40]!r}" if kind not in (None, *TEXT_PARTS) else "has no text"
            return f"its part {number} {what}; parts of text alone are read"
    return "it is empty"
