"""Answer a file of questions: check the files, answer, publish the answers with their manifest, print the stats.

A journal beside the output holds the answers so far, which a stopped run leaves to the next one of the same command:
first the fingerprint of what the answers depend on, then a line for each answer, in the order they came.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from impruver_core.cli.console import log_info, print_result
from impruver_core.cli.stop_signals import TerminationSignal
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import atomic_write, check_folder, make_folder, remove_stale_parts
from impruver_core.io.integrity import FileState, check_unchanged, read_file_states
from impruver_core.io.jsonl import format_row
from impruver_core.io.locks import lock_output_alone
from impruver_core.io.manifest import (
    check_replaceable,
    describe_file,
    get_manifest_path,
    get_pending_path,
    publish,
    recover,
)

from impruver_chat.backends.base import Answer, Backend, BackendEndedError, IndexedAnswers
from impruver_chat.batch import rows
from impruver_chat.batch.rows import Question
from impruver_chat.generation.prompt import SamplingParams

HEAD = b'{"answers_of"'


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


class BatchInput(NamedTuple):
    """The questions of a file, and what the manifest says of it."""

    questions: list[Question]
    described: dict[str, Any]


class ModelState(NamedTuple):
    """What answers: the recipe's section, the names of its files and folders, and how its files are."""

    section: dict[str, Any]
    names: list[str]
    states: dict[Path, FileState]

    def list_facts(self) -> list[Any]:
        """List what answers depend on, JSON types: of files size and time, less than their hash, and at no cost."""
        return [self.section, self.names, [[str(path), *state[2:4]] for path, state in self.states.items()]]


@contextmanager
def lock_batch_output(job: BatchJob) -> Iterator[None]:
    """Keep other runs from the output; ImpruverError where one is at work on it. Standard output needs none."""
    if job.output is None:
        yield
        return
    folder = job.output.parent
    check_folder(folder, "--output")
    is_new = not folder.exists()
    make_folder(folder)
    try:
        with lock_output_alone(job.output, f"--output: another impruver-chat is at work on {job.output}"):
            manifest_path = get_manifest_path(job.output)
            ours = (job.output, manifest_path, get_pending_path(manifest_path), get_journal_path(job.output))
            remove_stale_parts(folder, {path.name for path in ours}.__contains__)
            yield
    finally:
        if is_new:
            with suppress(OSError):  # it holds answers
                folder.rmdir()


def prepare_batch_job(job: BatchJob, dry_run: bool) -> BatchInput:
    """Read the questions, and check all that can be checked of them and of the output before a model is loaded."""
    if job.output and job.output.exists() and job.output.samefile(job.input):
        raise ImpruverError(f"--output: {job.output} is the --input itself")
    is_file = job.input.is_file()  # what comes through a pipe is gone
    states = read_file_states([job.input] if is_file else [])
    described = describe_file(job.input, digest=True) if is_file else {"path": str(job.input)}
    questions = rows.read_questions(job.input, job.system_prompt)
    check_unchanged(states)
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
    return BatchInput(questions, described | {"rows": len(questions)})


def run_batch_job(
    job: BatchJob, batch: BatchInput, backend: Backend, sampling: SamplingParams, model: ModelState, manifest: dict
) -> None:
    """Answer the questions, publish answers and manifest, print the stats; `manifest` is its head."""
    questions, stats = rows.encode_questions(batch.questions, backend, sampling, job.seed), rows.BatchStats()
    if job.strict:
        rows.check_no_faults(job.input, questions)
    if job.output is None:
        answers = rows.generate_answers(questions, backend, sampling, job.batch_size, None)
        with closing(rows.build_answer_rows(questions, answers, backend.tokenizer, stats, job.expect)) as answered:
            rows.print_rows(answered)
    else:
        fingerprint = compute_fingerprint(questions, sampling, model.list_facts())
        journal = get_journal_path(job.output)
        known = {} if job.overwrite else load_journal(journal, fingerprint)
        if known:
            log_info(f"note: {len(known):,} answers are those of the run that was stopped ({journal})")
        answers = rows.generate_answers(questions, backend, sampling, job.batch_size, known)
        answers = record_answers(journal, fingerprint, known, answers)
        answered = rows.build_answer_rows(questions, answers, backend.tokenizer, stats, job.expect)
        with reporting_saved_answers(journal, fingerprint, len(questions)), closing(answered):
            staged = rows.write_staged_rows(job.output, answered)
        try:
            check_unchanged(model.states)
        except ImpruverError:
            staged.unlink()
            journal.unlink()
            raise
        output = describe_file(staged, rows=stats.rows, digest=True) | {"path": job.output.name}
        files = {"inputs": [batch.described], "outputs": [output], "counts": vars(stats)}
        publish(get_manifest_path(job.output), [job.output], manifest | files)
        journal.unlink(missing_ok=True)
    print_stats(stats, job)


def print_stats(stats: rows.BatchStats, job: BatchJob) -> None:
    """Print what became of the rows, on stderr where stdout holds them."""
    report = log_info if job.output is None else print_result
    if stats.cut_off:
        log_info(f"note: {stats.cut_off:,} of the answers reached the limit of tokens: finish_reason is length")
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


def check_is_journal(journal: Path) -> None:
    """Raise ImpruverError for a file of somebody else under the journal's name."""
    if journal.is_file():
        with journal.open("rb") as file:
            start = file.read(len(HEAD))
        if start not in (b"", HEAD):
            raise ImpruverError(f"{journal} is no file of ours, and its name is wanted; move it, or use --overwrite")


def load_journal(journal: Path, fingerprint: str) -> dict[int, Answer]:
    """Load the answers by their index; {} for another fingerprint. A line that is cut off or damaged is left out."""
    if not journal.is_file():  # a pipe would never end
        return {}
    try:
        head, *lines = journal.read_bytes().splitlines(keepends=True)
        if json.loads(head) != {"answers_of": fingerprint}:
            return {}
    except (FileNotFoundError, ValueError, TypeError, RecursionError):
        return {}
    entries = [entry for entry in map(parse_answer, lines) if entry is not None]
    if len(entries) < len(lines):
        log_info(f"note: {len(lines) - len(entries):,} lines of {journal} are cut off or damaged, and asked again")
    return dict(entries)


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
    """Format an answer as a line of the journal, with its checksum."""
    entry = {"place": index} | asdict(answer)
    return format_row(entry | {"sum": compute_row_checksum(entry)}) + "\n"


def parse_answer(line: bytes) -> tuple[int, Answer] | None:
    """Parse a line of the journal; None for one that is not as it was written."""
    try:
        entry = json.loads(line)
        whole = entry.pop("sum") == compute_row_checksum(entry)
        return (entry.pop("place"), Answer(**entry)) if whole else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def compute_row_checksum(entry: dict) -> int:
    """Compute the CRC-32 of a row."""
    return zlib.crc32(format_row(entry).encode())


@contextmanager
def reporting_saved_answers(journal: Path, fingerprint: str, total: int) -> Iterator[None]:
    """Have what stops the run say how many answers the journal holds; remove a journal without any."""
    try:
        yield
    except BaseException as stop:
        saved = len(load_journal(journal, fingerprint))
        if not saved:
            journal.unlink(missing_ok=True)
        elif isinstance(stop, (KeyboardInterrupt, TerminationSignal, BackendEndedError)):
            message = f"{saved:,} of {total:,} answers are kept; the same command resumes from there"
            raise type(stop)("; ".join([*stop.args, message])) from None
        raise
