"""Questions in JSONL, answers in JSONL: the rows in their order, whole or not there at all."""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from impruver_core.cli.console import progress, silence
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.files.jsonl import dumps, numbered_rows
from impruver_core.files.safe import staged, synced

from impruver_chat.backends import Answer, Backend, Prompt
from impruver_chat.sampling import Sampling
from impruver_chat.scoring import is_match
from impruver_chat.session import NoAnswer, room_for, with_system, within

ANSWERS = ("assistant", "function_call")
ROLES = ("system", "developer", "user", "tool", "function_response", *ANSWERS)
OWN = ("error", "match")  # what we say of an answer; a row that has them was answered before


@dataclass(frozen=True)
class Question:
    """A row and what it asks; `fault` tells why it can't be asked."""

    line: int
    row: dict
    messages: list[dict]
    reference: str | None = None
    fault: str | None = None


@dataclass
class Counts:
    """What became of the rows. `cut_off`: answers that reached their limit of tokens."""

    rows: int = 0
    failed: int = 0
    cut_off: int = 0
    scored: int = 0
    right: int = 0


def read_questions(path: Path, system_prompt: str | None) -> list[Question]:
    """The questions of a JSONL file; ImpruverError with the line for what is no JSON, no object or no UTF-8."""
    questions = []
    for line, row in numbered_rows(path):
        try:
            json.dumps(row, ensure_ascii=False, allow_nan=False).encode()
        except UnicodeEncodeError:
            raise ImpruverError(f"{path}, line {line}: half of a surrogate pair (\\ud800…\\udfff): no text") from None
        except ValueError:
            raise ImpruverError(f"{path}, line {line}: not JSON: NaN or Infinity (or a number beyond all)") from None
        questions.append(question_of(line, row, system_prompt))
    if not questions:
        raise ImpruverError(f"{path}: no rows")
    return questions


def question_of(line: int, row: dict, system_prompt: str | None) -> Question:
    """What a row asks: its `messages` less a last answer, which is the reference, or its `prompt`."""
    for name, kind in (("tools", list), ("chat_template_kwargs", dict)):
        if not isinstance(row.get(name), (kind, type(None))):
            return Question(line, row, [], fault=f"{name} is no {kind.__name__}")
    given = row.get("reference")
    reference = given if isinstance(given, str) and given.strip() else None
    messages = row.get("messages")
    if messages is None and isinstance(row.get("prompt"), str):
        return Question(line, row, [*with_system(system_prompt), {"role": "user", "content": row["prompt"]}], reference)
    if messages is None:
        return Question(line, row, [], fault="neither messages nor a prompt")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Question(line, row, [], fault="messages is not a list of objects")
    if messages and messages[-1].get("role") in ANSWERS:
        content = messages[-1].get("content")
        if reference is None and isinstance(content, str) and content.strip():
            reference = content
        messages = messages[:-1]
    if not messages:
        return Question(line, row, [], fault="no message to answer")
    return Question(line, row, messages, reference, fault_of(messages))


def fault_of(messages: Sequence[dict]) -> str | None:
    """Why messages can't be asked; what a template would pass over or take for empty."""
    for number, message in enumerate(messages):
        role = message.get("role")
        if role not in ROLES:
            is_there = f"the role {role!r}" if "role" in message else "no role"
            return f"message {number} has {is_there}; there are {', '.join(ROLES)}"
        if message.get("content") is None and not (role == "assistant" and message.get("tool_calls")):
            return f"message {number} ({role}) has no content"
    return None


def refuse_faults(path: Path, questions: Sequence[Question | Prompt]) -> None:
    """ImpruverError for the first row that can't be asked, as --strict has it."""
    for question in questions:
        if isinstance(question, Question) and question.fault is not None:
            raise ImpruverError(f"{path}, line {question.line}: {question.fault}")


def encode_all(questions: Sequence[Question], backend: Backend, sampling: Sampling, seed: int) -> list:
    """A Prompt for each question, or the question with its fault; a row's seed is `seed` and its place."""
    return [_encoded(question, backend, sampling, seed + place) for place, question in enumerate(questions)]


def _encoded(question: Question, backend: Backend, sampling: Sampling, seed: int) -> Prompt | Question:
    row = question.row
    if question.fault is not None:
        return question
    try:
        ids = backend.encode(question.messages, row.get("tools"), row.get("chat_template_kwargs"))
        within(ids, backend.context)
    except (RefusedError, NoAnswer) as error:
        return Question(question.line, row, [], fault=str(error))
    return Prompt(ids, room_for(ids, backend.context, sampling.max_new_tokens), seed)


def answered(
    questions: Sequence[Question], prompts: list, backend: Backend, sampling: Sampling, counts: Counts, expect: bool
) -> Iterator[dict]:
    """The rows with their answers, each when it is wanted; `counts` grows with them."""
    with progress(None, len(questions), "answers") as bar:
        for question, prompt in zip(questions, prompts, strict=True):
            counts.rows += 1
            row = {name: value for name, value in question.row.items() if name not in OWN}
            if isinstance(prompt, Question):
                counts.failed += 1
                yield {name: value for name, value in row.items() if name != "messages"} | {"error": prompt.fault}
            else:
                answer = backend.stream(prompt, sampling, lambda _: None)
                counts.cut_off += not answer.ended
                row["messages"] = [*question.messages, {"role": "assistant", "content": answer.text}]
                yield row | (_scored(question, answer, counts) if expect else {})
            bar.update(1)


def _scored(question: Question, answer: Answer, counts: Counts) -> dict:
    if question.reference is None:
        return {}
    match = is_match(answer.text, question.reference)
    counts.scored += 1
    counts.right += match
    return {"reference": question.reference, "match": match}


def write_rows(output: Path, rows: Iterable[dict]) -> Path:
    """The finished file, beside `output` and not yet in its place. Nothing is left where it is stopped."""
    path = staged(output)
    try:
        with synced(path) as file:
            for row in rows:
                file.write(dumps(row) + "\n")
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return path


def print_rows(rows: Iterable[dict]) -> None:
    """Each row on stdout as soon as it is answered; a reader that leaves ends the work."""
    try:
        for row in rows:
            sys.stdout.buffer.write(dumps(row).encode() + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        silence(sys.stdout)
