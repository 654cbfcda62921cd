"""A file of questions and the file of their answers: what is checked before, what is put in place, what is told."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, print_result
from impruver_core.cli.runner import TerminationSignal
from impruver_core.errors import ImpruverError
from impruver_core.io.atomic import check_folder
from impruver_core.io.manifest import (
    build_manifest,
    check_replaceable,
    describe_file,
    get_manifest_path,
    publish,
    recover,
)
from impruver_core.recipe.loading import Recipe, resolve_recipe

from impruver_chat.backends.base import Backend
from impruver_chat.batch import answers as batch
from impruver_chat.batch import answers as scoring
from impruver_chat.batch.journal import (
    check_is_journal,
    compute_fingerprint,
    get_journal_path,
    load_journal,
    record_answers,
)
from impruver_chat.batch.questions import Question, check_no_faults, encode_questions, read_questions
from impruver_chat.generation.parameters import SamplingParams


@dataclass(frozen=True)
class BatchJob:
    """Questions and answers in JSONL, and what is done about rows that can't be asked or have a reference."""

    questions: Path
    answers: Path | None  # None: standard output
    strict: bool = False
    expect: bool = False
    overwrite: bool = False

    @property
    def target(self) -> str:
        """Where the answers go, for a person."""
        return str(self.answers or "standard output")


def prepare_batch_job(files: BatchJob, system_prompt: str | None, dry_run: bool) -> list[Question]:
    """The questions, when all that can be checked of them and of the place for the answers is right."""
    if files.answers and files.answers.exists() and files.answers.samefile(files.questions):
        raise ImpruverError(f"--output: {files.answers} is the --input itself")
    questions = read_questions(files.questions, system_prompt)
    if files.strict:
        check_no_faults(files.questions, questions)
    if files.expect and not any(question.reference for question in questions):
        raise ImpruverError(f"--expect: no row of {files.questions} has a reference (a last answer, or `reference`)")
    if files.answers:
        if not dry_run:
            recover(get_manifest_path(files.answers))
        check_replaceable([files.answers], get_manifest_path(files.answers), files.overwrite)
        check_folder(files.answers.parent, "--output")
        if not files.overwrite:
            check_is_journal(get_journal_path(files.answers))
    return questions


def run_batch_job(
    files: BatchJob, questions: list[Question], backend: Backend, chosen: SamplingParams, recipe: Recipe, model: Any
) -> None:
    """Answers the questions, puts answers and manifest in their place, tells the counts.

    `model` is what the answers depend on beside questions and parameters; see `fingerprint`.
    """
    prompts, counts = encode_questions(questions, backend, chosen, recipe.seed), batch.BatchStats()
    if files.strict:
        check_no_faults(files.questions, prompts)

    def write(given: batch.IndexedAnswers, to: Any) -> Any:
        with closing(batch.build_answer_rows(questions, prompts, given, backend.markers, counts, files.expect)) as rows:
            return to(rows)

    size = recipe.chat.batch_size
    if files.answers is None:
        write(batch.generate_answers(prompts, backend, chosen, size, None), batch.print_rows)
    else:
        of, journal = compute_fingerprint(prompts, chosen, model), get_journal_path(files.answers)
        known = {} if files.overwrite else load_journal(journal, of)
        if known:
            log_info(f"note: {len(known):,} answers are those of the run that was stopped ({journal})")
        given = record_answers(journal, of, known, batch.generate_answers(prompts, backend, chosen, size, known))
        with preserving_answers(journal, of, len(prompts)):
            path = write(given, lambda rows: batch.write_staged_rows(files.answers, rows))
        publish(
            get_manifest_path(files.answers), {files.answers: path}, build_answers_manifest(files, path, counts, recipe)
        )
        journal.unlink(missing_ok=True)
    print_stats(counts, files)


@contextmanager
def preserving_answers(journal: Path, of: str, total: int) -> Iterator[None]:
    """Says in what stops the work how many answers are kept; a journal without any is removed."""
    try:
        yield
    except BaseException as stop:
        kept = len(load_journal(journal, of))
        if not kept:
            journal.unlink(missing_ok=True)
        elif isinstance(stop, (KeyboardInterrupt, TerminationSignal)):
            told = f"{kept:,} of {total:,} answers are kept; the same command goes on from there"
            raise type(stop)(told) from None
        raise


def build_answers_manifest(files: BatchJob, written: Path, counts: batch.BatchStats, recipe: Recipe) -> dict:
    """What the answers were made from, and how they ended; `written` is not yet in its place."""
    questions, made = files.questions, build_manifest("impruver-chat", resolve_recipe(recipe, absolute=True))
    is_kept = questions.is_file()  # what came through a pipe is gone
    made["inputs"] = [
        describe_file(questions, counts.rows, digest=True) if is_kept else {"path": str(questions), "rows": counts.rows}
    ]
    made["outputs"] = [describe_file(written, rows=counts.rows, digest=True) | {"path": files.answers.name}]
    return made | {"counts": vars(counts)}


def print_stats(counts: batch.BatchStats, files: BatchJob) -> None:
    """What became of the rows; on stderr where stdout holds them."""
    tell = log_info if files.answers is None else print_result
    if counts.cut_off:
        log_info(f"note: {counts.cut_off:,} of the answers reached the limit of tokens and may be cut off")
    if counts.replaced:
        log_info(f"note: {counts.replaced:,} rows had an error, reference or match of their own, which ours replaced")
    if files.expect:
        if unscored := counts.rows - counts.failed - counts.scored:
            log_info(f"note: {unscored:,} of the answers have no reference that is a text, and are not scored")
        tell(scoring.format_share(counts.right, counts.scored))
    failed = f", {counts.failed:,} of them with an error" if counts.failed else ""
    tell(f"wrote {counts.rows:,} rows to {files.target}{failed}")
