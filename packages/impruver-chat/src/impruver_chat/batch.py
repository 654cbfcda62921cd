"""Questions in JSONL, answers in JSONL: the rows in their order, whole or not there at all."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from impruver_core.cli.console import progress
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.files.jsonl import dumps, numbered_rows
from impruver_core.files.safe import staged, synced

from impruver_chat.backends import Answer, Backend, Prompt
from impruver_chat.sampling import Sampling
from impruver_chat.scoring import is_match
from impruver_chat.session import TooLong, room_for, with_system, within

ANSWERS = ("assistant", "function_call")


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
            dumps(row).encode()
        except UnicodeEncodeError:
            raise ImpruverError(f"{path}, line {line}: half of a surrogate pair (\\ud800…\\udfff): no text") from None
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
    return Question(line, row, messages, reference)


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
    except (RefusedError, TooLong) as error:
        return Question(question.line, row, [], fault=str(error))
    return Prompt(ids, room_for(ids, backend.context, sampling.max_new_tokens), seed)


def write_answers(
    output: Path, questions: Sequence[Question], prompts: list, backend: Backend, sampling: Sampling, expect: bool
) -> tuple[Path, Counts]:
    """(the finished file, beside `output` and not yet in its place; counts). Nothing is left where it is stopped."""
    path, counts = staged(output), Counts()
    answers = backend.answer_batch([prompt for prompt in prompts if isinstance(prompt, Prompt)], sampling)
    try:
        with synced(path) as file, progress(None, len(questions), "answers") as bar:
            for question, prompt in zip(questions, prompts, strict=True):
                row = answered(question, prompt, answers, counts, expect)
                file.write(dumps(row) + "\n")
                bar.update(1)
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return path, counts


def answered(
    question: Question, prompt: Prompt | Question, answers: Iterator[Answer], counts: Counts, expect: bool
) -> dict:
    """The row with its answer, or with its error and without messages."""
    counts.rows += 1
    if isinstance(prompt, Question):
        counts.failed += 1
        return {name: value for name, value in question.row.items() if name != "messages"} | {"error": prompt.fault}
    answer = next(answers)
    counts.cut_off += not answer.ended
    row = question.row | {"messages": [*question.messages, {"role": "assistant", "content": answer.text}]}
    if expect and question.reference is not None:
        row |= {"reference": question.reference, "match": is_match(answer.text, question.reference)}
        counts.scored += 1
        counts.right += row["match"]
    return row
