"""The rows of answers, in the order of the questions: generated, scored against references, written."""

import sys
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from impruver_core.cli.console import open_progress, silence_stream, warn
from impruver_core.io import jsonl
from impruver_core.io.atomic import get_staged_path, open_synced

from impruver_chat.backends.base import Answer, Backend, IndexedAnswers
from impruver_chat.batch.questions import Question
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.responses.stream_parser import parse_response
from impruver_chat.responses.template_markers import TemplateMarkers

WINDOW = 8  # batches of a file that are sorted together


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
    questions: list[Question], answers: IndexedAnswers, markers: TemplateMarkers, stats: BatchStats, expect: bool
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
            message = parse_response(markers, answer.text)
            scores = _score_answer(question, message["content"], stats) if expect else {}
            yield _merge_fields(question.row, scores, stats) | {"messages": [*question.messages, message]}


def _merge_fields(row: dict, ours: dict, stats: BatchStats) -> dict:
    """Add our fields to a row, in place of its own of these names."""
    stats.replaced += any(name in row and row[name] != value for name, value in ours.items())
    return row | ours


def _score_answer(question: Question, answer: str, stats: BatchStats) -> dict:
    if question.reference is None:
        return {}
    match = is_match(answer, question.reference)
    stats.scored += 1
    stats.right += match
    return {"reference": question.reference, "match": match}


def is_match(answer: str, reference: str) -> bool:
    """Whether both say the same, up to case, blanks, final punctuation and Unicode's several forms."""
    return normalize_text(answer) == normalize_text(reference)


def normalize_text(text: str) -> str:
    """Normalize a text for comparison; one of punctuation alone keeps it."""
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
            jsonl.write_rows(file, rows)
    except BaseException:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise
    return path


def print_rows(rows: Iterable[dict]) -> None:
    """Print each row on stdout as soon as it is answered; a reader that leaves ends the work."""
    try:
        for row in rows:
            sys.stdout.buffer.write(jsonl.format_row(row).encode() + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        silence_stream(sys.stdout)
