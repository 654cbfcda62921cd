"""Composes data: load, convert, encode, dedup, split, weigh, write. Reads as the list of its steps."""

import dataclasses

from impruver_core.chat_template.masking.loss_mask import check_fast_tokenizer
from impruver_core.cli.console import format_table
from impruver_core.errors import CheckFailedError, ImpruverError
from impruver_core.io.atomic import check_folder, make_folder
from impruver_core.io.locking import lock_folders
from impruver_core.io.manifest import check_replaceable, get_pending_path, recover
from impruver_core.recipe.loading import resolve_recipe
from impruver_core.tokenizer import compute_fingerprint, load_tokenizer

from impruver_compose import output
from impruver_compose import selection as tally
from impruver_compose import template_checks as gate
from impruver_compose.dedup.near_duplicates import find_duplicates
from impruver_compose.encoding import cache
from impruver_compose.encoding.job import open_jobs
from impruver_compose.encoding.max_length import row_limit
from impruver_compose.encoding.workers import encode_missing, processes
from impruver_compose.ledger import Counts, Ledger
from impruver_compose.reporting import explain, summary_tables
from impruver_compose.reporting import html_report as page
from impruver_compose.reporting.preview import show
from impruver_compose.reporting.summary_tables import dropped
from impruver_compose.selection import split
from impruver_compose.storage.corpus import Corpus
from impruver_compose.template_checks import probe
from impruver_compose.torch_guard import import_libraries

WAYS_OUT = {
    "nothing_to_learn": "what is to be learned needs the role assistant",
    "too_long": "raise max_tokens_count, or set the data set's on_overflow: trim_turns",
}


def compose(recipe, dry_run: bool = False, overwrite: bool = False, num_proc: int | None = None) -> None:
    """Runs compose on a loaded recipe; nothing is written under a final name before everything is ready."""
    paths, num_proc = output.Paths.of(recipe), processes(num_proc)
    _check_places(paths, dry_run, overwrite)
    tokenizer, limit = _tokenizer(recipe)
    jobs, inputs = open_jobs(recipe, tokenizer, limit, [*paths.outputs(), paths.manifest])
    if dry_run:
        gate.estimate(jobs, [probe(job) for job in jobs])
        return
    told = compute_fingerprint(tokenizer)
    entries = [cache.entry_of(job, told) for job in jobs]
    jobs = [dataclasses.replace(job, day=cache.day_of(job, entry)) for job, entry in zip(jobs, entries, strict=True)]
    seen = [probe(job) for job in jobs]
    encode_missing(jobs, entries, num_proc)
    corpus, ledger = Corpus([job.name for job in jobs], [entry.shards() for entry in entries]), Ledger()
    counts = [tally.count_encoded(job, entry, ledger) for job, entry in zip(jobs, entries, strict=True)]
    train, val, duplicates = _chosen(recipe, jobs, corpus, ledger, counts)
    lines = [corpus.lines_of(train), corpus.lines_of(val)]
    tally.count_written(corpus, counts, jobs, train, val, lines)
    facts = {
        "max_tokens_count": limit,
        "days": [job.day for job in jobs],
        "inputs": inputs,
        "cache": [entry.folder.name for entry in entries],
        "counts": [each.as_dict() for each in counts],
        "gate": gate.check(jobs, counts, seen),
    }
    manifest = output.manifest(resolve_recipe(recipe), tokenizer, told, facts)
    html = page.page(paths, corpus, jobs, counts, lines, duplicates, facts["gate"])
    with lock_folders(paths.folders()):
        _settle(paths, overwrite)  # again: meanwhile another run may have written
        if overwrite or not output.stand(paths, manifest):
            output.write(paths, corpus, ledger, *lines, html, manifest)
    cache.forget_old()
    summary_tables.report(paths, jobs, counts, ledger)
    refused = sum(each.dropped["mask_refused"] for each in counts)
    if refused:
        raise CheckFailedError(f"{refused} conversations have no exact mask: see mask_refused in {paths.ledger}")


def show_rows(recipe, count: int) -> None:
    """Prints the first rows of each data set as they are trained on; writes nothing."""
    jobs, _ = open_jobs(recipe, *_tokenizer(recipe), [])
    show(jobs, count)


def explain_row(recipe, place: str) -> None:
    """Tells what the last run made of a row; writes nothing."""
    asked = explain.Place.of(place)
    past = explain.Past.of(output.Paths.of(recipe))
    import_libraries()
    jobs, inputs = open_jobs(recipe, None, None, [])
    explain.explain(jobs, inputs, past, asked)


def _tokenizer(recipe) -> tuple:
    """(tokenizer, tokens of the longest row or None), behind the imports that they need."""
    import_libraries()
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model.name, recipe_dir=recipe.base_dir)
    check_fast_tokenizer(tokenizer)
    return tokenizer, row_limit(recipe, tokenizer)


def _chosen(recipe, jobs, corpus: Corpus, ledger: Ledger, counts: list[Counts]) -> tuple[list[int], list[int], list]:
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
            "\n".join([f"no usable rows are left of {rows}", format_table(*dropped(jobs, counts)), *ways])
        )
    train, val = split(left, corpus.prompt.tolist(), share.val_ratio, share.val_rows, recipe.seed)
    if not train:
        raise ImpruverError(
            f"none of {len(val)} conversations is left for train_path: lower split.val_rows (or val_ratio)"
        )
    tally.warn_of_leaks(corpus, train, val, dedup)
    train = tally.weigh_train(corpus, train, [each.weight for each in recipe.datasets], recipe.seed, ledger, counts)
    return train, val, duplicates


def _check_places(paths: output.Paths, dry_run: bool, overwrite: bool) -> None:
    """ImpruverError where the outputs can't be put; what a killed run had begun to put in place is finished."""
    for folder in paths.folders():
        (check_folder if dry_run else make_folder)(folder)
    if not dry_run:
        with lock_folders(paths.folders()):
            _settle(paths, overwrite)
    elif not get_pending_path(paths.manifest).exists():  # else the next start finishes what a kill cut off
        check_replaceable(paths.outputs(), paths.manifest, overwrite)


def _settle(paths: output.Paths, overwrite: bool) -> None:
    recover(paths.manifest)
    check_replaceable(paths.outputs(), paths.manifest, overwrite)
