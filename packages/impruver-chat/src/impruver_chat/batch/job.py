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
from impruver_core.io.manifest import build_manifest, check_replaceable, describe_file, publish, recover
from impruver_core.recipe.loading import Recipe, resolve_recipe

from impruver_chat.backends.base import Backend
from impruver_chat.batch import answers as batch
from impruver_chat.batch import answers as scoring
from impruver_chat.batch.journal import check_ours, fingerprint, journal_of, noted, take_up
from impruver_chat.batch.questions import Question, encode_all, read_questions, refuse_faults
from impruver_chat.generation.parameters import Sampling


@dataclass(frozen=True)
class Files:
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


def prepare(files: Files, system_prompt: str | None, dry_run: bool) -> list[Question]:
    """The questions, when all that can be checked of them and of the place for the answers is right."""
    if files.answers and files.answers.exists() and files.answers.samefile(files.questions):
        raise ImpruverError(f"--output: {files.answers} is the --input itself")
    questions = read_questions(files.questions, system_prompt)
    if files.strict:
        refuse_faults(files.questions, questions)
    if files.expect and not any(question.reference for question in questions):
        raise ImpruverError(f"--expect: no row of {files.questions} has a reference (a last answer, or `reference`)")
    if files.answers:
        if not dry_run:
            recover(manifest_of(files.answers))
        check_replaceable([files.answers], manifest_of(files.answers), files.overwrite)
        check_folder(files.answers.parent, "--output")
        if not files.overwrite:
            check_ours(journal_of(files.answers))
    return questions


def manifest_of(answers: Path) -> Path:
    """Where the answers' manifest stands."""
    return answers.with_name(f"{answers.name}.manifest.json")


def answer_files(
    files: Files, questions: list[Question], backend: Backend, chosen: Sampling, recipe: Recipe, model: Any
) -> None:
    """Answers the questions, puts answers and manifest in their place, tells the counts.

    `model` is what the answers depend on beside questions and parameters; see `fingerprint`.
    """
    prompts, counts = encode_all(questions, backend, chosen, recipe.seed), batch.Counts()
    if files.strict:
        refuse_faults(files.questions, prompts)

    def write(given: batch.Given, to: Any) -> Any:
        with closing(batch.answered(questions, prompts, given, backend.marks, counts, files.expect)) as rows:
            return to(rows)

    size = recipe.chat.batch_size
    if files.answers is None:
        write(batch.answers(prompts, backend, chosen, size, None), batch.print_rows)
    else:
        of, journal = fingerprint(prompts, chosen, model), journal_of(files.answers)
        known = {} if files.overwrite else take_up(journal, of)
        if known:
            log_info(f"note: {len(known):,} answers are those of the run that was stopped ({journal})")
        given = noted(journal, of, known, batch.answers(prompts, backend, chosen, size, known))
        with keeping(journal, of, len(prompts)):
            path = write(given, lambda rows: batch.write_rows(files.answers, rows))
        publish(manifest_of(files.answers), {files.answers: path}, manifest(files, path, counts, recipe))
        journal.unlink(missing_ok=True)
    tell_counts(counts, files)


@contextmanager
def keeping(journal: Path, of: str, total: int) -> Iterator[None]:
    """Says in what stops the work how many answers are kept; a journal without any is removed."""
    try:
        yield
    except BaseException as stop:
        kept = len(take_up(journal, of))
        if not kept:
            journal.unlink(missing_ok=True)
        elif isinstance(stop, (KeyboardInterrupt, TerminationSignal)):
            told = f"{kept:,} of {total:,} answers are kept; the same command goes on from there"
            raise type(stop)(told) from None
        raise


def manifest(files: Files, written: Path, counts: batch.Counts, recipe: Recipe) -> dict:
    """What the answers were made from, and how they ended; `written` is not yet in its place."""
    questions, made = files.questions, build_manifest("impruver-chat", resolve_recipe(recipe, absolute=True))
    is_kept = questions.is_file()  # what came through a pipe is gone
    made["inputs"] = [
        describe_file(questions, counts.rows, digest=True) if is_kept else {"path": str(questions), "rows": counts.rows}
    ]
    made["outputs"] = [describe_file(written, rows=counts.rows, digest=True) | {"path": files.answers.name}]
    return made | {"counts": vars(counts)}


def tell_counts(counts: batch.Counts, files: Files) -> None:
    """What became of the rows; on stderr where stdout holds them."""
    tell = log_info if files.answers is None else print_result
    if counts.cut_off:
        log_info(f"note: {counts.cut_off:,} of the answers reached the limit of tokens and may be cut off")
    if counts.replaced:
        log_info(f"note: {counts.replaced:,} rows had an error, reference or match of their own, which ours replaced")
    if files.expect:
        if unscored := counts.rows - counts.failed - counts.scored:
            log_info(f"note: {unscored:,} of the answers have no reference that is a text, and are not scored")
        tell(scoring.share(counts.right, counts.scored))
    failed = f", {counts.failed:,} of them with an error" if counts.failed else ""
    tell(f"wrote {counts.rows:,} rows to {files.target}{failed}")
