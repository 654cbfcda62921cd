"""Answer a file of questions: check the files, answer, publish the answers with their manifest, print the stats.

A journal beside the output holds the answers so far, which a stopped run leaves to the next one of the same command:
first the fingerprint of what the answers depend on, then a line for each answer, in the order they came.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, print_result
from impruver_core.cli.runner import TerminationSignal
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, check_folder, make_folder
from impruver_core.io.jsonl import format_row
from impruver_core.io.manifest import check_replaceable, describe_file, get_manifest_path, publish, recover

from impruver_chat.backends.base import Answer, Backend, IndexedAnswers
from impruver_chat.batch import rows
from impruver_chat.batch.rows import Question
from impruver_chat.generation.parameters import SamplingParams

HEAD = b'{"answers_of"'
WEIGHTS = ("*.safetensors", "*.json", "*.jinja", "*.model")


@dataclass(frozen=True)
class BatchJob:
    """A JSONL of questions to answer; `output` None is standard output.

    `strict` stops at a row that can't be asked, `expect` compares answers with the rows' references.
    """

    input: Path
    output: Path | None
    strict: bool
    expect: bool
    overwrite: bool
    system_prompt: str | None
    batch_size: int
    seed: int

    @property
    def target(self) -> str:
        """Where the answers go, for a person."""
        return str(self.output or "standard output")


def prepare_batch_job(job: BatchJob, dry_run: bool) -> list[Question]:
    """Read the questions, and check all that can be checked of them and of the output before a model is loaded."""
    if job.output and job.output.exists() and job.output.samefile(job.input):
        raise ImpruverError(f"--output: {job.output} is the --input itself")
    questions = rows.read_questions(job.input, job.system_prompt)
    if job.strict:
        rows.check_no_faults(job.input, questions)
    if job.expect and not any(question.reference for question in questions):
        raise ImpruverError(f"--expect: no row of {job.input} has a reference (a last answer, or `reference`)")
    if job.output:
        manifest_path = get_manifest_path(job.output)
        if not dry_run:
            recover(manifest_path, [job.output])
        check_replaceable([job.output], manifest_path, job.overwrite)
        check_folder(job.output.parent, "--output")
        if not job.overwrite:
            check_is_journal(get_journal_path(job.output))
    return questions


def run_batch_job(
    job: BatchJob, questions: list[Question], backend: Backend, sampling: SamplingParams, state: list, manifest: dict
) -> None:
    """Answer the questions, publish answers and manifest, print the stats.

    Args:
        state: what the answers depend on besides prompts and sampling; see `compute_fingerprint`.
        manifest: the head of the manifest.
    """
    questions, stats = rows.encode_questions(questions, backend, sampling, job.seed), rows.BatchStats()
    markers = backend.tokenizer.markers
    if job.strict:
        rows.check_no_faults(job.input, questions)
    if job.output is None:
        answers = rows.generate_answers(questions, backend, sampling, job.batch_size, None)
        with closing(rows.build_answer_rows(questions, answers, markers, stats, job.expect)) as answered:
            rows.print_rows(answered)
    else:
        fingerprint = compute_fingerprint(questions, sampling, state)
        journal = get_journal_path(job.output)
        known = {} if job.overwrite else load_journal(journal, fingerprint)
        if known:
            log_info(f"note: {len(known):,} answers are those of the run that was stopped ({journal})")
        answers = rows.generate_answers(questions, backend, sampling, job.batch_size, known)
        answers = record_answers(journal, fingerprint, known, answers)
        answered = rows.build_answer_rows(questions, answers, markers, stats, job.expect)
        with reporting_saved_answers(journal, fingerprint, len(questions)), closing(answered):
            staged = rows.write_staged_rows(job.output, answered)
        publish(get_manifest_path(job.output), [job.output], manifest | describe_files(job, staged, stats))
        journal.unlink(missing_ok=True)
    print_stats(stats, job)


def describe_files(job: BatchJob, staged: Path, stats: rows.BatchStats) -> dict[str, Any]:
    """Describe input, output and stats for the manifest; `staged` is the output before it is put in its place."""
    source = {"path": str(job.input), "rows": stats.rows}
    if job.input.is_file():  # what came through a pipe is gone
        source = describe_file(job.input, stats.rows, digest=True)
    output = describe_file(staged, rows=stats.rows, digest=True) | {"path": job.output.name}
    return {"inputs": [source], "outputs": [output], "counts": vars(stats)}


def print_stats(stats: rows.BatchStats, job: BatchJob) -> None:
    """Print what became of the rows, on stderr where stdout holds them."""
    report = log_info if job.output is None else print_result
    if stats.cut_off:
        log_info(f"note: {stats.cut_off:,} of the answers reached the limit of tokens and may be cut off")
    if stats.replaced:
        log_info(f"note: {stats.replaced:,} rows had an error, reference or match of their own, which ours replaced")
    if job.expect:
        if unscored := stats.rows - stats.failed - stats.scored:
            log_info(f"note: {unscored:,} of the answers have no reference that is a text, and are not scored")
        report(rows.format_share(stats.right, stats.scored))
    failed = f", {stats.failed:,} of them with an error" if stats.failed else ""
    report(f"wrote {stats.rows:,} rows to {job.target}{failed}")


def get_journal_path(output: Path) -> Path:
    """The path of an output's journal."""
    return output.with_name(f".{output.name}.partial")


def compute_fingerprint(questions: Sequence[Question], sampling: SamplingParams, model_state: list) -> str:
    """Compute the hash of what the answers depend on: the prompts, sampling, and the model."""
    prompts = [question.prompt and asdict(question.prompt) for question in questions]
    return hashlib.sha256(json.dumps([prompts, asdict(sampling), model_state], default=str).encode()).hexdigest()


def describe_model_files(path: Path) -> list:
    """Name, size and time of a model's file, or of those in its folder: less than their hash, and at no cost."""
    files = [path] if path.is_file() else sorted(file for pattern in WEIGHTS for file in path.glob(pattern))
    return [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files] or [str(path)]


def check_is_journal(journal: Path) -> None:
    """Raise ImpruverError for a file of somebody else under the journal's name."""
    if journal.is_file():
        with journal.open("rb") as file:
            start = file.read(len(HEAD))
        if start not in (b"", HEAD):
            raise ImpruverError(f"{journal} is no file of ours, and its name is wanted; move it, or use --overwrite")


def load_journal(journal: Path, fingerprint: str) -> dict[int, Answer]:
    """Load the answers by their index; {} for another fingerprint. A line that was cut off is left out."""
    if not journal.is_file():  # a pipe would never end
        return {}
    try:
        head, *lines = journal.read_bytes().splitlines(keepends=True)
        if json.loads(head) != {"answers_of": fingerprint}:
            return {}
        entries = [json.loads(line) for line in lines if line.endswith(b"\n")]
        known = {entry["place"]: Answer(entry["text"], entry["ended"]) for entry in entries}
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    plain = all(type(index) is int and isinstance(answer.text, str) for index, answer in known.items())
    return known if plain else {}


def record_answers(
    journal: Path, fingerprint: str, known: dict[int, Answer], answers: IndexedAnswers
) -> IndexedAnswers:
    """Pass (index, answer) on, each written to the journal before; `known` ones stand there from the start."""
    make_folder(journal.parent)
    with atomic_write(journal) as file:
        file.write(format_row({"answers_of": fingerprint}) + "\n")
        file.writelines(format_answer(index, answer) for index, answer in known.items())
    with journal.open("ab", buffering=0) as file:  # each line is written at once, or not at all
        for index, answer in answers:
            if index not in known:
                file.write(format_answer(index, answer).encode())
            yield index, answer


def format_answer(index: int, answer: Answer) -> str:
    """Format an answer as a line of the journal."""
    return format_row({"place": index} | asdict(answer)) + "\n"


@contextmanager
def reporting_saved_answers(journal: Path, fingerprint: str, total: int) -> Iterator[None]:
    """Have what stops the run say how many answers the journal holds; remove a journal without any."""
    try:
        yield
    except BaseException as stop:
        saved = len(load_journal(journal, fingerprint))
        if not saved:
            journal.unlink(missing_ok=True)
        elif isinstance(stop, (KeyboardInterrupt, TerminationSignal)):
            message = f"{saved:,} of {total:,} answers are kept; the same command resumes from there"
            raise type(stop)(message) from None
        raise
