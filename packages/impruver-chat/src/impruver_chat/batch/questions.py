"""Questions in JSONL: the messages of each row, or why it can't be asked; and their prompts."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.io.jsonl import BLANKS, format_row, read_numbered_rows

from impruver_chat.backends.base import Backend, Prompt
from impruver_chat.conversation import (
    ANSWER_ROLES,
    RESPONSE_ROLES,
    NoAnswerError,
    limit_new_tokens,
    make_system_messages,
)
from impruver_chat.generation.parameters import SamplingParams

STDIN = Path("/dev/stdin")
TEXT_ROLES = ("system", "developer", "user", "assistant")
ROLES = (*TEXT_ROLES[:3], *RESPONSE_ROLES, *ANSWER_ROLES)


@dataclass(frozen=True)
class Question:
    """A row, the messages that it asks with, and their prompt once encoded; `fault` says why it can't be asked."""

    line: int
    row: dict
    messages: list[dict]
    reference: str | None = None
    fault: str | None = None
    prompt: Prompt | None = None


def has_rows_on_stdin() -> bool:
    """Whether stdin is no terminal and begins as JSONL does; waits for its first bytes, and leaves them there."""
    try:
        if sys.stdin.isatty():
            return False
        return sys.stdin.buffer.peek(1).removeprefix(b"\xef\xbb\xbf").lstrip(BLANKS.encode()).startswith(b"{")
    except (AttributeError, OSError, ValueError):  # none of the system's streams, or closed
        return False


def read_questions(path: Path, system_prompt: str | None) -> list[Question]:
    """Read the questions of a JSONL file; ImpruverError with the line for what is no JSON, no object or no UTF-8."""
    questions = []
    stream = sys.stdin.buffer if path == STDIN else None  # opened anew it would lack what was peeked at
    for line, row in read_numbered_rows(path, stream):
        try:
            format_row(row).encode()
        except UnicodeEncodeError:
            raise ImpruverError(f"{path}, line {line}: half of a surrogate pair (\\ud800…\\udfff): no text") from None
        except ValueError:
            raise ImpruverError(f"{path}, line {line}: not JSON: NaN or Infinity (or a number beyond all)") from None
        questions.append(parse_question(line, row, system_prompt))
    if not questions:
        raise ImpruverError(f"{path}: no rows")
    return questions


def parse_question(line: int, row: dict, system_prompt: str | None) -> Question:
    """Parse a row: its `messages` less a last answer, which is the reference, or its `prompt`."""
    for name, kind in (("tools", list), ("chat_template_kwargs", dict)):
        if not isinstance(row.get(name), (kind, type(None))):
            return Question(line, row, [], fault=f"{name} is no {kind.__name__}")
    reference = row.get("reference")
    reference = reference if isinstance(reference, str) and reference.strip() else None
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), str):
        messages = [*make_system_messages(system_prompt), {"role": "user", "content": row["prompt"]}]
        return Question(line, row, messages, reference)
    if messages is None:
        return Question(line, row, [], fault="neither messages nor a prompt")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Question(line, row, [], fault="messages is not a list of objects")
    if messages and messages[-1].get("role") in ANSWER_ROLES:
        content = messages[-1].get("content")
        if reference is None and isinstance(content, str) and content.strip():
            reference = content
        messages = messages[:-1]
    if not messages:
        return Question(line, row, [], fault="no message to answer")
    return Question(line, row, messages, reference, find_fault(messages))


def find_fault(messages: Sequence[dict]) -> str | None:
    """Find why messages can't be asked: what a chat template would pass over or take for empty."""
    for number, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            has_role = f"the role {role!r}" if "role" in message else "no role"
            return f"message {number} has {has_role}; there are {', '.join(ROLES)}"
        if message.get("content") is None and not (role == "assistant" and message.get("tool_calls")):
            return f"message {number} ({role}) has no content"
        if role in TEXT_ROLES and isinstance(message.get("content"), list):
            return f"message {number} ({role}) has a list as content, not a text"
    return None


def check_no_faults(path: Path, questions: Sequence[Question]) -> None:
    """Raise ImpruverError for the first row that can't be asked, as --strict has it."""
    for question in questions:
        if question.fault is not None:
            raise ImpruverError(f"{path}, line {question.line}: {question.fault}")


def encode_questions(
    questions: Sequence[Question], backend: Backend, sampling: SamplingParams, seed: int
) -> list[Question]:
    """Encode the prompt of each question with a seed of its own, `seed` and its index; one that can't be is a fault."""
    encoded = []
    for index, question in enumerate(questions):
        row = question.row
        try:
            if question.fault is None:
                ids = backend.tokenizer.encode(question.messages, row.get("tools"), row.get("chat_template_kwargs"))
                max_new_tokens = limit_new_tokens(ids, backend.context_length, sampling.max_new_tokens)
                question = replace(question, prompt=Prompt(ids, max_new_tokens, seed + index))
        except (RefusedError, NoAnswerError) as error:
            question = replace(question, fault=str(error))
        encoded.append(question)
    return encoded
