"""Questions in JSONL, answers in JSONL: the rows in their order, whole or not there at all."""

import sys
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from impruver_core.cli.console import open_progress, silence_stream, warn
from impruver_core.io import jsonl
from impruver_core.io.atomic import get_staged_path, open_synced

from impruver_chat.backends.base import Answer, Backend, Prompt
from impruver_chat.batch.questions import Question
from impruver_chat.generation.parameters import SamplingParams
from impruver_chat.responses.stream_parser import ResponseStreamParser
from impruver_chat.responses.template_markers import TemplateMarkers


def is_match(answer: str, reference: str) -> bool:
    """True where both say the same."""
    return normalize_text(answer) == normalize_text(reference)


def normalize_text(text: str) -> str:
    """A text less what does not count; one of punctuation alone keeps it."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words = " ".join(folded.split())
    end = len(words)
    while end and (words[end - 1] == " " or unicodedata.category(words[end - 1]).startswith("P")):
        end -= 1
    return words[:end] or words


def format_share(right: int, asked: int) -> str:
    """`right: 10 of 12 (83.3%)`."""
    if not asked:
        return "right: 0 of 0: no row with a reference could be asked"
    return f"right: {right:,} of {asked:,} ({right / asked:.1%})"


WINDOW = 8  # batches of a file that are sorted together


@dataclass
class BatchStats:
    """What became of the rows. `cut_off`: answers that reached their limit of tokens; `replaced`: rows whose own
    `error`, `reference` or `match` gave way to ours.
    """

    rows: int = 0
    failed: int = 0
    cut_off: int = 0
    scored: int = 0
    right: int = 0
    replaced: int = 0


IndexedAnswers = Iterator[tuple[int, Answer]]  # places and answers, each when it is done


def generate_answers(
    prompts: Sequence[Prompt | Question],
    backend: Backend,
    sampling: SamplingParams,
    size: int,
    known: dict[int, Answer] | None,
) -> IndexedAnswers:
    """(place, answer) of each Prompt in `prompts`: those of `known`, then the others, each when it is done.

    Several batches are sorted together; where nothing is `known`, for a reader that waits, each is taken by itself.
    """
    window = size if known is None else WINDOW * size
    known = known or {}
    yield from known.items()
    left = [place for place, prompt in enumerate(prompts) if isinstance(prompt, Prompt) and place not in known]
    for start in range(0, len(left), window):
        part = left[start : start + window]
        for number, answer in backend.answer_batch([prompts[place] for place in part], sampling, size):
            yield part[number], answer


def build_answer_rows(
    questions: Sequence[Question],
    prompts: list,
    given: IndexedAnswers,
    marks: TemplateMarkers,
    counts: BatchStats,
    expect: bool,
) -> Iterator[dict]:
    """The rows with their answers in the rows' order, each as soon as it can be had; `counts` grows with them.

    `marks` are what tells reasoning and calls from the text of an answer.
    """
    ready: dict[int, Answer] = {}
    with open_progress(len(questions), "answers") as bar:
        for place, (question, prompt) in enumerate(zip(questions, prompts, strict=True)):
            counts.rows += 1
            if isinstance(prompt, Question):
                if not counts.failed:
                    warn(f"line {prompt.line} can't be asked: {prompt.fault}; such rows are written with their error")
                counts.failed += 1
                bar.update(1)
                there = {name: value for name, value in question.row.items() if name != "messages"}
                yield _merge_fields(there, {"error": prompt.fault}, counts)
                continue
            while place not in ready:
                number, ready[number] = next(given)
                bar.update(1)
            answer = ready.pop(place)
            counts.cut_off += not answer.ended
            message = parse_response(marks, answer.text)
            scores = _score_answer(question, message["content"], counts) if expect else {}
            yield _merge_fields(question.row, scores, counts) | {"messages": [*question.messages, message]}


def _merge_fields(row: dict, ours: dict, counts: BatchStats) -> dict:
    """A row with fields of ours, which win; counted where it had something else in them."""
    counts.replaced += any(name in row and row[name] != value for name, value in ours.items())
    return row | ours


def parse_response(marks: TemplateMarkers, text: str) -> dict:
    """The message that an answer is, as a conversation at a terminal would keep it."""
    speech = ResponseStreamParser(marks, lambda kind, piece: None)
    speech.feed(text)
    return speech.finish()


def _score_answer(question: Question, answer: str, counts: BatchStats) -> dict:
    if question.reference is None:
        return {}
    match = is_match(answer, question.reference)
    counts.scored += 1
    counts.right += match
    return {"reference": question.reference, "match": match}


def write_staged_rows(output: Path, rows: Iterable[dict]) -> Path:
    """The finished file, beside `output` and not yet in its place. Nothing is left where it is stopped."""
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
    """Each row on stdout as soon as it is answered; a reader that leaves ends the work."""
    try:
        for row in rows:
            sys.stdout.buffer.write(jsonl.format_row(row).encode() + b"\n")
            sys.stdout.buffer.flush()
    except BrokenPipeError:
        silence_stream(sys.stdout)
