"""impruver-chat, step by step: parameters, files, questions, model; then a terminal or a file of answers."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from impruver_core.cli.console import log_info, print_result, warn
from impruver_core.errors import ImpruverError
from impruver_core.llama_cpp import check_cyllama_installed
from impruver_core.recipe.loading import Recipe

from impruver_chat import model_dir as found
from impruver_chat.backends.base import Backend
from impruver_chat.backends.llama_cpp import backend as llama
from impruver_chat.backends.transformers import backend as transformers
from impruver_chat.batch.job import BatchJob, prepare_batch_job, run_batch_job
from impruver_chat.batch.journal import describe_model_files
from impruver_chat.conversation import Conversation
from impruver_chat.generation import parameters as sampling
from impruver_chat.terminal import repl as terminal


def chat(recipe: Recipe, gguf: str | None, files: BatchJob | None, dry_run: bool, plain: bool, compare: bool) -> None:
    """Talks at a terminal, or answers `files`; `dry_run` ends before weights.

    `plain`: without Markdown; `compare`: with the base's answers beside the adapter's.
    """
    if not recipe.output_dir:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser()
    chosen = sampling.resolve_parameters(recipe.chat, output_dir, interactive=files is None)
    questions = prepare_batch_job(files, recipe.chat.system_prompt, dry_run) if files else []
    load, parts = find_loader(recipe, output_dir, gguf, dry_run, compare)
    say_or_result = print_result if dry_run else log_info
    if files:
        say_or_result(f"{len(questions):,} questions of {files.questions}, answers to {files.target}")
    say_or_result(f"generation: {sampling.format_parameters(chosen)}")
    if dry_run:
        return
    backend = load()
    if files is None:
        session = Conversation(recipe.chat.system_prompt, recipe.chat.history_limit)
        terminal.run_conversation(session, backend, chosen, recipe.seed, plain, compare)
        return
    model = [asdict(recipe.model), *map(describe_model_files, parts)]
    run_batch_job(files, questions, backend, chosen, recipe, model)


def find_loader(
    recipe: Recipe, output_dir: Path, gguf: str | None, dry_run: bool, compare: bool
) -> tuple[Callable[[], Backend] | None, list[Path]]:
    """(what loads the backend, its files and folders); what is to be loaded, and compared, is checked and told at once.

    Where nothing is there yet that is a note for a dry run, which loads nothing.
    """
    tell, would = (print_result, "would load") if dry_run else (log_info, "loading")
    options = {
        "add_bos": has_bos(recipe.datasets),
        "chat_template_kwargs": recipe.tokenizer.chat_template_kwargs or {},
    }
    if gguf is not None:
        check_cyllama_installed("--gguf", "impruver-chat")
        check_comparable(compare, found.GGUF_NO_COMPARISON)
        path = found.check_gguf_file(Path(gguf).expanduser())
        tell(f"{would} {path} (llama.cpp)")
        return partial(llama.load_backend, path, output_dir, recipe.tokenizer, options), [output_dir, path]
    try:
        there = found.find_model(output_dir, recipe.model.name, recipe.base_dir)
    except found.ModelNotFoundError as absent:
        if not dry_run:
            raise
        log_info(f"note: {absent}")
        return None, []
    check_comparable(compare, there.no_comparison_reason)
    if not there.is_finished:
        warn(f"{output_dir} holds no impruver.json: its training has not finished")
    tell(f"{would} {there.describe()} ({found.describe_precision(recipe.model)})")
    load = partial(transformers.load_backend, there, recipe.model, recipe.tokenizer, options, recipe.base_dir)
    return load, [output_dir, Path(there.base)] if there.base else [output_dir]


def check_comparable(compare: bool, alone: str | None) -> None:
    """ImpruverError where answers are to be compared and there is nothing to compare them with."""
    if compare and alone:
        raise ImpruverError(f"--compare: {alone}")


def has_bos(datasets: Any) -> bool:
    """Whether the training rows had BOS, as far as the recipe tells (`add_global_bos` of its data sets)."""
    given = [
        each.get("add_global_bos", True) if isinstance(each, dict) else each.add_global_bos for each in datasets or []
    ]
    return not given or any(given)
