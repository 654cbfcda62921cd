"""impruver-chat, step by step: parameters, files, questions, model; then a terminal or a file of answers."""

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from impruver_core.cli.console import result, say, warn
from impruver_core.errors import ImpruverError
from impruver_core.files.manifest import check_replaceable, describe, new_manifest, publish, recover
from impruver_core.files.safe import make_folder
from impruver_core.recipe.load import Recipe, resolved

from impruver_chat import batch, found, sampling, scoring, terminal
from impruver_chat.backends import Backend
from impruver_chat.session import Session


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


@dataclass(frozen=True)
class Looks:
    """How a conversation looks: without Markdown, and with the base's answers beside the adapter's."""

    plain: bool = False
    compare: bool = False


def chat(
    recipe: Recipe,
    gguf: str | None = None,
    files: Files | None = None,
    dry_run: bool = False,
    looks: Looks = Looks(),
) -> None:
    """Talks at a terminal, or answers `files`; `dry_run` ends before weights."""
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    chosen = sampling.choose(recipe.chat, output_dir, interactive=files is None)
    questions = prepare(files, recipe.chat.system_prompt, dry_run) if files else []
    load = loader(recipe, output_dir, gguf, dry_run, looks.compare)
    say_or_result = result if dry_run else say
    if files:
        say_or_result(f"{len(questions):,} questions of {files.questions}, answers to {files.target}")
    say_or_result(f"generation: {sampling.described(chosen)}")
    if dry_run:
        return
    backend = load()
    if files is None:
        session = Session(recipe.chat.system_prompt, recipe.chat.history_limit)
        terminal.converse(session, backend, chosen, recipe.seed, plain=looks.plain, compare=looks.compare)
        return
    answer_files(files, questions, backend, chosen, recipe)


def prepare(files: Files, system_prompt: str | None, dry_run: bool) -> list[batch.Question]:
    """The questions, when all that can be checked of them and of the place for the answers is right."""
    if files.answers and files.answers.exists() and files.answers.samefile(files.questions):
        raise ImpruverError(f"--output: {files.answers} is the --input itself")
    questions = batch.read_questions(files.questions, system_prompt)
    if files.strict:
        batch.refuse_faults(files.questions, questions)
    if files.expect and not any(question.reference for question in questions):
        raise ImpruverError(f"--expect: no row of {files.questions} has a reference (a last answer, or `reference`)")
    if files.answers:
        if not dry_run:
            recover(manifest_of(files.answers))
        check_replaceable([files.answers], manifest_of(files.answers), files.overwrite)
        found.check_writable(files.answers.parent)
    return questions


def manifest_of(answers: Path) -> Path:
    """Where the answers' manifest stands."""
    return answers.with_name(f"{answers.name}.manifest.json")


def loader(recipe: Recipe, output_dir: Path, gguf: str | None, dry_run: bool, compare: bool = False) -> Any:
    """A function that loads the backend; what is to be loaded, and compared, is checked and told at once."""
    options = {
        "add_bos": wants_bos(recipe.datasets),
        "chat_template_kwargs": recipe.tokenizer.chat_template_kwargs or {},
    }
    tell = result if dry_run else say
    if gguf is not None:
        from impruver_chat.backends import gguf as llama

        llama.require_cyllama()
        require_two(compare, found.GGUF_ALONE)
        path = found.check_gguf(Path(gguf).expanduser())
        tell(f"{'would load' if dry_run else 'loading'} {path} (llama.cpp)")
        return lambda: llama.load(path, output_dir, recipe.tokenizer, options)
    try:
        there = found.find_model(output_dir, recipe.model.name, recipe.base_dir)
    except found.NothingThere as absent:
        if not dry_run:
            raise
        say(f"note: {absent}")
        return None
    require_two(compare, there.alone)
    if not there.finished:
        warn(f"{output_dir} holds no impruver.json: its training has not finished")
    tell(f"{'would load' if dry_run else 'loading'} {there.described()} ({found.precision(recipe.model)})")

    def load() -> Backend:
        from impruver_chat.backends import transformers

        return transformers.load(there, recipe.model, recipe.tokenizer, options, recipe.base_dir)

    return load


def require_two(compare: bool, alone: str | None) -> None:
    """ImpruverError where answers are to be compared and there is nothing to compare them with."""
    if compare and alone:
        raise ImpruverError(f"--compare: {alone}")


def wants_bos(datasets: Any) -> bool:
    """Whether the training rows had BOS, as far as the recipe tells (`add_global_bos` of its data sets)."""
    given = [
        each.get("add_global_bos", True) if isinstance(each, dict) else each.add_global_bos for each in datasets or []
    ]
    return not given or any(given)


def answer_files(
    files: Files, questions: list[batch.Question], backend: Backend, chosen: sampling.Sampling, recipe: Recipe
) -> None:
    """Answers the questions, puts answers and manifest in their place, tells the counts."""
    prompts, counts = batch.encode_all(questions, backend, chosen, recipe.seed), batch.Counts()
    if files.strict:
        batch.refuse_faults(files.questions, prompts)
    with closing(batch.answered(questions, prompts, backend, chosen, counts, files.expect)) as rows:
        if files.answers is None:
            batch.print_rows(rows)
        else:
            make_folder(files.answers.parent)
            path = batch.write_rows(files.answers, rows)
            publish(manifest_of(files.answers), {files.answers: path}, manifest(files, path, counts, recipe))
    tell_counts(counts, files)


def manifest(files: Files, written: Path, counts: batch.Counts, recipe: Recipe) -> dict:
    """What the answers were made from, and how they ended; `written` is not yet in its place."""
    questions, made = files.questions, new_manifest("impruver-chat", resolved(recipe, absolute=True))
    is_kept = questions.is_file()  # what came through a pipe is gone
    made["inputs"] = [
        describe(questions, counts.rows, digest=True) if is_kept else {"path": str(questions), "rows": counts.rows}
    ]
    made["outputs"] = [describe(written, rows=counts.rows, digest=True) | {"path": files.answers.name}]
    return made | {"counts": vars(counts)}


def tell_counts(counts: batch.Counts, files: Files) -> None:
    """What became of the rows; on stderr where stdout holds them."""
    tell = say if files.answers is None else result
    if counts.cut_off:
        say(f"note: {counts.cut_off:,} of the answers reached the limit of tokens and may be cut off")
    if files.expect:
        tell(scoring.share(counts.right, counts.scored))
    failed = f", {counts.failed:,} of them with an error" if counts.failed else ""
    tell(f"wrote {counts.rows:,} rows to {files.target}{failed}")
