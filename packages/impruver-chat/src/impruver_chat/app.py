"""The steps of impruver-chat, from a recipe to a conversation at a terminal or a file of answers."""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from impruver_core.cli.console import log_info, print_result
from impruver_core.errors import ImpruverError
from impruver_core.io.integrity import read_file_states
from impruver_core.io.manifest import build_manifest
from impruver_core.recipe.loading import Recipe, resolve_recipe

from impruver_chat.backends.chat_tokenizer import EncodingOptions, has_bos
from impruver_chat.backends.llama_cpp import backend as llama_cpp
from impruver_chat.backends.transformers import backend as transformers
from impruver_chat.batch.job import BatchJob, ModelState, lock_batch_output, prepare_batch_job, run_batch_job
from impruver_chat.conversation import Conversation
from impruver_chat.generation.parameters import format_parameters, resolve_parameters
from impruver_chat.model_dir import GgufFile, check_as_made, find_source, list_model_files
from impruver_chat.terminal.repl import run_conversation


def chat(recipe: Recipe, gguf: str | None, job: BatchJob | None, dry_run: bool, plain: bool, compare: bool) -> None:
    """Answer the questions of a file (`job`) or of a person; `dry_run` ends before the model is loaded.

    Args:
        gguf: a GGUF file that answers in place of the model in output_dir.
        plain: show answers as they are, not as Markdown.
        compare: show the base's answers beside the adapter's.
    """
    if not recipe.output_dir and gguf is None:
        raise ImpruverError(f"{recipe.path}: output_dir is not set")
    output_dir = Path(recipe.output_dir).expanduser() if recipe.output_dir else None
    report = print_result if dry_run else log_info

    with ExitStack() as stack:
        if job and not dry_run:
            stack.enter_context(lock_batch_output(job))
        batch = prepare_batch_job(job, dry_run) if job else None
        source = find_source(output_dir, gguf, recipe.model.name, recipe.base_dir, missing_ok=dry_run)
        file = source.path if isinstance(source, GgufFile) else None
        sampling = resolve_parameters(recipe.chat, output_dir, interactive=job is None, gguf=file)
        if compare and source and source.no_comparison_reason:
            raise ImpruverError(f"--compare: {source.no_comparison_reason}")
        if source:
            report(f"{'would load' if dry_run else 'loading'} {source.describe(recipe.model)}")
        if batch:
            report(f"{len(batch.questions):,} questions of {job.input}, answers to {job.target}")
        report(f"generation: {format_parameters(sampling)}")
        if dry_run:
            return

        states = read_file_states(list_model_files(source))
        check_as_made(source)
        section = recipe.tokenizer
        kwargs, own_tokens = section.chat_template_kwargs or {}, section.own_tokens
        # `keep` is about rows that are trained on: what is typed never ends a turn
        control_text = "text" if section.control_text == "keep" else section.control_text
        options = EncodingOptions(has_bos(recipe.datasets), kwargs, control_text, own_tokens)
        if gguf:
            backend = llama_cpp.load_backend(source, recipe.tokenizer, options, recipe.base_dir)
            stack.callback(backend.close)
        else:
            backend = transformers.load_backend(source, recipe.model, recipe.tokenizer, options, recipe.base_dir)
        if batch:
            model = ModelState(asdict(recipe.model), list(map(str, source.files)), states)
            manifest = build_manifest("impruver-chat", resolve_recipe(recipe, absolute=True))
            run_batch_job(job, batch, backend, sampling, model, manifest)
        else:
            conversation = Conversation(recipe.chat.system_prompt, recipe.chat.history_limit)
            name = str(source.files[-1 if gguf else 0].absolute())
            run_conversation(conversation, backend, sampling, recipe.seed, plain, compare, name)
