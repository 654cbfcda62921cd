"""The rows of a file: questions and their prompts, or what is wrong with a row; answers, scored and in order."""

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from impruver_core.cli.console import open_progress, warn
from impruver_core.cli.streams import silence_stream
from impruver_core.errors import ImpruverError, RefusedError
from impruver_core.io.atomic import get_staged_path, open_synced
from impruver_core.io.jsonl import BLANKS, format_row, read_numbered_rows, write_rows

from impruver_chat.backends.base import Answer, Backend, IndexedAnswers
from impruver_chat.backends.chat_tokenizer import ChatTokenizer
from impruver_chat.conversation import NoAnswerError, limit_new_tokens
from impruver_chat.generation.prompt import Prompt, SamplingParams
from impruver_chat.messages import ANSWER_ROLES, find_fault, join_contents, join_text_parts, make_system_messages
from impruver_chat.responses.stream_parser import parse_response

STDIN = Path("/dev/stdin")
WINDOW = 8  # batches of a file that are sorted together


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
    messages, prompt = row.get("messages"), join_text_parts(row.get("prompt"))
    if messages is None and isinstance(prompt, str):
        messages = [*make_system_messages(system_prompt), {"role": "user", "content": prompt}]
        return Question(line, row, messages, reference)
    if messages is None:
        return Question(line, row, [], fault="neither messages nor a prompt")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return Question(line, row, [], fault="messages is not a list of objects")
    messages = join_contents(messages)
    if messages and messages[-1].get("role") in ANSWER_ROLES:
        content = messages[-1].get("content")
        if reference is None and isinstance(content, str) and content.strip():
            reference = content
        messages = messages[:-1]
    if not messages:
        return Question(line, row, [], fault="no message to answer")
    return Question(line, row, messages, reference, find_fault(messages))


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


@dataclass
class BatchStats:
    """What became of the rows, as it goes into the manifest.

    `cut_off`: answers that reached their limit of tokens; `replaced`: rows whose own `error`, `reference` or `match`
    gave way to ours.
    """

    rows: int = 0
    failed: int = 0
    cut_off: int = 0
    scored: int = 0
    right: int = 0
    replaced: int = 0


def generate_answers(
    questions: list[Question], backend: Backend, sampling: SamplingParams, size: int, known: dict[int, Answer] | None
) -> IndexedAnswers:
    """Yield (index, answer) for each question with a prompt: first those of `known`, then the others as each one ends.

    Several batches are sorted by length together; where `known` is None, for a reader that waits, each by itself.
    """
    window = size if known is None else WINDOW * size
    known = known or {}
    yield from known.items()
    left = [index for index, question in enumerate(questions) if question.prompt and index not in known]
    for start in range(0, len(left), window):
        part = left[start : start + window]
        prompts = [questions[index].prompt for index in part]
        for position, answer in backend.answer_batch(prompts, sampling, size):
            yield part[position], answer


def build_answer_rows(
    questions: list[Question], answers: IndexedAnswers, tokenizer: ChatTokenizer, stats: BatchStats, expect: bool
) -> Iterator[dict]:
    """Yield the rows with their answers in the order of the questions, each as soon as it can be; updates `stats`."""
    ready: dict[int, Answer] = {}
    with open_progress(len(questions), "answers") as bar:
        for index, question in enumerate(questions):
            stats.rows += 1
            if question.fault is not None:
                if not stats.failed:
                    message = f"line {question.line} can't be asked: {question.fault}"
                    warn(f"{message}; such rows are written with their error")
                stats.failed += 1
                bar.update(1)
                fields = {name: value for name, value in question.row.items() if name != "messages"}
                yield _merge_fields(fields, {"error": question.fault}, stats)
                continue
            while index not in ready:
                number, ready[number] = next(answers)
                bar.update(1)
            answer = ready.pop(index)
            stats.cut_off += not answer.ended
            message = parse_response(tokenizer.get_markers(question.row.get("chat_template_kwargs")), answer.text)
            scores = {}
            if expect and question.reference is not None:
                match = normalize_text(message["content"]) == normalize_text(question.reference)
                stats.scored += 1
                stats.right += match
                scores = {"reference": question.reference, "match": match}
            ending = format_finish_reason(question.row, answer)
            yield _merge_fields(question.row, scores, stats) | {"messages": [*question.messages, message]} | ending


def format_finish_reason(row: dict, answer: Answer) -> dict[str, str]:
    """Format how an answer ended as a field: of one at its limit, and where a row has another answer's already."""
    if not answer.ended:
        return {"finish_reason": "length"}
    return {"finish_reason": "stop"} if "finish_reason" in row else {}


def _merge_fields(row: dict, ours: dict, stats: BatchStats) -> dict:
    """Add our fields to a row, in place of its own of these names."""
    stats.replaced += any(name in row and row[name] != value for name, value in ours.items())
    return row | ours


def normalize_text(text: str) -> str:
    """Normalize case, blanks, final punctuation (if there is more than that) and Unicode's forms, to compare texts."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(folded.split())
    end = len(words)
    while end and (words[end - 1] == " " or unicodedata.category(words[end - 1]).startswith("P")):
        end -= 1
    return words[:end] or words


def format_share(right: int, asked: int) -> str:
    """Format the share of right answers: `right: 10 of 12 (83.3%)`."""
    if not asked:
        return "right: 0 of 0: no row with a reference could be asked"
    return f"right: {right:,} of {asked:,} ({right / asked:.1%})"


def write_staged_rows(output: Path, rows: Iterable[dict]) -> Path:
    """Write the rows to a staged file beside `output`; its path. Nothing is left of it where it is stopped."""
    path = get_staged_path(output)
    try:
        with open_synced(path) as file:
            write_rows(file, rows)
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return path


def print_rows(rows: Iterable[dict]) -> None:
    """Print each row on stdout as soon as it is answered; a reader that leaves ends the work."""
    try:
        for row in rows:
            sys.stdout.buffer.write(format_row(row).encode() + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        silence_stream(sys.stdout)
