"""Composes data: load, convert, encode, dedup, split, weigh, write. Reads as the list of its steps."""

import dataclasses

from impruver_core.chat_template.masking.loss_mask import check_fast_tokenizer
from impruver_core.cli.console import format_table
from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.io.atomic import check_folder, lock_folders, make_folder
from impruver_core.io.manifest import check_replaceable, get_pending_path, recover
from impruver_core.recipe.loading import resolve_recipe
from impruver_core.tokenizer import compute_fingerprint, load_tokenizer

from impruver_compose import output
from impruver_compose import selection as tally
from impruver_compose import template_checks as gate
from impruver_compose.dedup.near_duplicates import find_duplicates
from impruver_compose.encoding import cache
from impruver_compose.encoding.job import open_jobs
from impruver_compose.encoding.max_length import resolve_max_length
from impruver_compose.encoding.workers import encode_missing_shards, resolve_num_proc
from impruver_compose.ledger import DatasetStats, Ledger
from impruver_compose.reporting import explain, summary_tables
from impruver_compose.reporting import html_report as page
from impruver_compose.reporting.preview import print_rows
from impruver_compose.reporting.summary_tables import build_drop_table
from impruver_compose.selection import split_train_val
from impruver_compose.storage.corpus import Corpus
from impruver_compose.template_checks import probe_template
from impruver_compose.torch_guard import import_libraries

WAYS_OUT = {
    "nothing_to_learn": "what is to be learned needs the role assistant",
    "too_long": "raise max_tokens_count, or set the data set's on_overflow: trim_turns",
}


def compose(recipe, dry_run: bool = False, overwrite: bool = False, num_proc: int | None = None) -> None:
    """Runs compose on a loaded recipe; nothing is written under a final name before everything is ready."""
    paths, num_proc = output.OutputPaths.resolve(recipe), resolve_num_proc(num_proc)
    _check_output_paths(paths, dry_run, overwrite)
    tokenizer, limit = _load_tokenizer(recipe)
    jobs, inputs = open_jobs(recipe, tokenizer, limit, [*paths.outputs(), paths.manifest])
    if dry_run:
        gate.estimate_stats(jobs, [probe_template(job) for job in jobs])
        return
    told = compute_fingerprint(tokenizer)
    entries = [cache.open_entry(job, told) for job in jobs]
    jobs = [
        dataclasses.replace(job, day=cache.get_template_day(job, entry))
        for job, entry in zip(jobs, entries, strict=True)
    ]
    seen = [probe_template(job) for job in jobs]
    encode_missing_shards(jobs, entries, num_proc)
    corpus, ledger = Corpus([job.name for job in jobs], [entry.get_shard_paths() for entry in entries]), Ledger()
    counts = [tally.count_encoded(job, entry, ledger) for job, entry in zip(jobs, entries, strict=True)]
    train, val, duplicates = _select(recipe, jobs, corpus, ledger, counts)
    lines = [corpus.get_row_numbers(train), corpus.get_row_numbers(val)]
    tally.count_written(corpus, counts, jobs, train, val, lines)
    facts = {
        "max_tokens_count": limit,
        "days": [job.day for job in jobs],
        "inputs": inputs,
        "cache": [entry.folder.name for entry in entries],
        "counts": [each.to_dict() for each in counts],
        "gate": gate.check_templates(jobs, counts, seen),
    }
    manifest = output.build_output_manifest(resolve_recipe(recipe), tokenizer, told, facts)
    html = page.render_report(paths, corpus, jobs, counts, lines, duplicates, facts["gate"])
    with lock_folders(paths.folders()):
        _recover_and_check(paths, overwrite)  # again: meanwhile another run may have written
        if overwrite or not output.outputs_up_to_date(paths, manifest):
            output.write_outputs(paths, corpus, ledger, *lines, html, manifest)
    cache.remove_old_entries()
    summary_tables.print_summary(paths, jobs, counts, ledger)
    refused = sum(each.dropped["mask_refused"] for each in counts)
    if refused:
        raise CheckFailedError(f"{refused} conversations have no exact mask: see mask_refused in {paths.ledger}")


def show_rows(recipe, count: int) -> None:
    """Prints the first rows of each data set as they are trained on; writes nothing."""
    jobs, _ = open_jobs(recipe, *_load_tokenizer(recipe), [])
    print_rows(jobs, count)


def explain_row(recipe, place: str) -> None:
    """Tells what the last run made of a row; writes nothing."""
    asked = explain.RowReference.parse(place)
    past = explain.PreviousRun.load(output.OutputPaths.resolve(recipe))
    import_libraries()
    jobs, inputs = open_jobs(recipe, None, None, [])
    explain.print_explanation(jobs, inputs, past, asked)


def _load_tokenizer(recipe) -> tuple:
    """(tokenizer, tokens of the longest row or None), behind the imports that they need."""
    import_libraries()
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model.name, recipe_dir=recipe.base_dir)
    check_fast_tokenizer(tokenizer)
    return tokenizer, resolve_max_length(recipe, tokenizer)


def _select(
    recipe, jobs, corpus: Corpus, ledger: Ledger, counts: list[DatasetStats]
) -> tuple[list[int], list[int], list]:
    """(train, val, duplicates): numbers of conversations, in train as often as they are to stand there."""
    dedup, share = recipe.dedup, recipe.split
    duplicates = find_duplicates(corpus, dedup.method, dedup.threshold, dedup.num_perm)
    left = tally.drop_duplicates(corpus, duplicates, ledger, counts)
    if not left:
        ways = [
            f"{reason}: {way}" for reason, way in WAYS_OUT.items() if any(reason in each.dropped for each in counts)
        ]
        rows = sum(each.rows for each in counts)
        raise ImpruverError(
            "\n".join([f"no usable rows are left of {rows}", format_table(*build_drop_table(jobs, counts)), *ways])
        )
    train, val = split_train_val(left, corpus.prompt.tolist(), share.val_ratio, share.val_rows, recipe.seed)
    if not train:
        raise ImpruverError(
            f"none of {len(val)} conversations is left for train_path: lower split.val_rows (or val_ratio)"
        )
    tally.warn_about_leaks(corpus, train, val, dedup)
    train = tally.resample_train(corpus, train, [each.weight for each in recipe.datasets], recipe.seed, ledger, counts)
    return train, val, duplicates


def _check_output_paths(paths: output.OutputPaths, dry_run: bool, overwrite: bool) -> None:
    """ImpruverError where the outputs can't be put; what a killed run had begun to put in place is finished."""
    for folder in paths.folders():
        (check_folder if dry_run else make_folder)(folder)
    if not dry_run:
        with lock_folders(paths.folders()):
            _recover_and_check(paths, overwrite)
    elif not get_pending_path(paths.manifest).exists():  # else the next start finishes what a kill cut off
        check_replaceable(paths.outputs(), paths.manifest, overwrite)


def _recover_and_check(paths: output.OutputPaths, overwrite: bool) -> None:
    recover(paths.manifest)
    check_replaceable(paths.outputs(), paths.manifest, overwrite)
