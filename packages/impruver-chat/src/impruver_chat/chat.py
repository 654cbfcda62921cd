"""impruver-chat, step by step: parameters, files, questions, model; then a terminal or a file of answers."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from impruver_core.cli.console import result, say, warn
from impruver_core.errors import ImpruverError
from impruver_core.recipe.load import Recipe

from impruver_chat import found, sampling, terminal
from impruver_chat.backends import Backend
from impruver_chat.files import Files, answer_files, prepare
from impruver_chat.journal import state_of
from impruver_chat.session import Session


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
    answer_files(files, questions, backend, chosen, recipe, model_state(recipe, output_dir, gguf))


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


def model_state(recipe: Recipe, output_dir: Path, gguf: str | None) -> list:
    """What is loaded, by names, sizes and times of its files and the recipe's model section."""
    folders = [output_dir]
    if gguf is not None:
        folders.append(Path(gguf).expanduser())
    elif base := found.find_model(output_dir, recipe.model.name, recipe.base_dir).base:
        folders.append(Path(base))
    return [asdict(recipe.model), *map(state_of, folders)]
