"""The answers so far, beside the file that they are for: what a stopped run leaves to the next one of the same command.

First a line that tells what the answers are of, then one for each answer, in the order in which they came.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, make_folder
from impruver_core.io.jsonl import format_row

from impruver_chat.backends.base import Answer, Prompt
from impruver_chat.generation.parameters import SamplingParams

HEAD = b'{"answers_of"'
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model")


def get_journal_path(answers: Path) -> Path:
    """Where the answers so far stand."""
    return answers.with_name(f".{answers.name}.partial")


def compute_fingerprint(prompts: Sequence[Any], sampling: SamplingParams, model: Any) -> str:
    """What the answers depend on: each Prompt (what is none is no prompt), the parameters, and `model` as JSON."""
    asked = [asdict(prompt) if isinstance(prompt, Prompt) else None for prompt in prompts]
    return hashlib.sha256(json.dumps([asked, asdict(sampling), model], default=str).encode()).hexdigest()


def describe_model_files(path: Path) -> list:
    """Name, size and time of a model's file, or of those in its folder; less than its hash, and at no cost."""
    files = [path] if path.is_file() else sorted(found for kind in WEIGHTS for found in path.glob(kind))
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files] or [str(path)]


def check_is_journal(journal: Path) -> None:
    """ImpruverError for a file of somebody else under the journal's name."""
    if journal.is_file():
        with journal.open("rb") as file:
            begins = file.read(len(HEAD))
        if begins not in (b"", HEAD):
            raise ImpruverError(f"{journal} is no file of ours, and its name is wanted; move it, or use --overwrite")


def load_journal(journal: Path, of: str) -> dict[int, Answer]:
    """The answers in a journal of the same fingerprint, by place; {} else. What was cut off within a line is let go."""
    try:
        head, *lines = journal.read_bytes().splitlines(keepends=True)
        if json.loads(head) != {"answers_of": of}:
            return {}
        rows = [json.loads(line) for line in lines if line.endswith(b"\n")]
        return {row["place"]: Answer(row["text"], row["ended"]) for row in rows}
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return {}


def record_answers(journal: Path, of: str, known: dict[int, Answer], given: Iterable) -> Iterator[tuple[int, Answer]]:
    """Passes (place, answer) on, each written down before; what is `known` stands there from the start."""
    make_folder(journal.parent)
    with atomic_write(journal) as file:
        file.write(format_row({"answers_of": of}) + "\n")
        file.writelines(format_answer(place, answer) for place, answer in known.items())
    with journal.open("ab", buffering=0) as file:  # each line is written at once, or not at all
        for place, answer in given:
            if place not in known:
                file.write(format_answer(place, answer).encode())
            yield place, answer


def format_answer(place: int, answer: Answer) -> str:
    """An answer as a line of the journal."""
    return format_row({"place": place} | asdict(answer)) + "\n"
