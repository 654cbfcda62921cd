"""Composes data: load, convert, encode, dedup, split, write. Reads as the list of its steps."""

import dataclasses
import tempfile
from pathlib import Path

from impruver_core.cli.console import say
from impruver_core.errors import CheckFailed, ImpruverError
from impruver_core.files.manifest import check_replaceable, pending_path, recover
from impruver_core.files.safe import alone_in, make_folder
from impruver_core.recipe.load import resolved
from impruver_core.templating.tokenizer import load_tokenizer

from impruver_compose import dedup, output, split
from impruver_compose.converters import find_converter
from impruver_compose.encode import Job, encode_source
from impruver_compose.ledger import Counts, Ledger
from impruver_compose.limits import row_limit
from impruver_compose.sources import open_source
from impruver_compose.spool import Corpus

DRY_ROWS = 200  # rows of each data set that a dry run encodes


def compose(recipe, dry_run: bool = False, overwrite: bool = False) -> None:
    """Runs compose on a loaded recipe; nothing is written under a final name before everything is ready."""
    paths = output.Paths.of(recipe)
    if not dry_run:
        for folder in paths.folders():
            make_folder(folder)
        with alone_in(paths.folders()):
            _settle(paths, overwrite)
    elif not pending_path(paths.manifest).exists():  # else the next start finishes what a kill cut off
        check_replaceable(paths.outputs(), paths.manifest, overwrite)
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model.name, recipe_dir=recipe.base_dir)
    limit = row_limit(recipe, tokenizer)
    jobs, inputs = _jobs(recipe, tokenizer, limit, [*paths.outputs(), paths.manifest])
    if dry_run:
        _estimate(jobs)
        return
    ledger = Ledger()
    corpus = Corpus.in_folder(paths.train.parent)
    try:
        counts = [encode_source(job, corpus, ledger) for job in jobs]
        left = _without_duplicates(corpus, recipe.dedup, ledger, counts)
        if not left:
            raise ImpruverError(
                f"no usable rows are left of {sum(c.rows for c in counts)}\n{output.dropped_table(jobs, counts)}"
            )
        train, val = split.split(left, corpus.prompts, recipe.split.val_ratio, recipe.split.val_rows, recipe.seed)
        if not train:
            raise ImpruverError(
                f"none of {len(val)} conversations is left for train_path: lower split.val_rows (or val_ratio)"
            )
        _count(corpus, counts, jobs, train, val)
        manifest = output.manifest(resolved(recipe), tokenizer, inputs, counts, limit)
        with alone_in(paths.folders()):
            _settle(paths, overwrite)  # again: meanwhile another run may have written
            output.write(paths, corpus, ledger, train, val, manifest)
    finally:
        corpus.close()
    output.report(paths, jobs, counts, ledger, len(train), len(val))
    refused = sum(each.dropped["mask_refused"] for each in counts)
    if refused:
        raise CheckFailed(f"{refused} conversations have no exact mask: see mask_refused in {paths.ledger}")


def _settle(paths: output.Paths, overwrite: bool) -> None:
    """Finishes what a killed run had begun to put in place; ImpruverError where a file is not ours to replace."""
    recover(paths.manifest)
    check_replaceable(paths.outputs(), paths.manifest, overwrite)


def _without_duplicates(corpus: Corpus, section, ledger: Ledger, counts: list[Counts]) -> list[int]:
    """The numbers of the conversations that are kept; what repeats another goes into the ledger."""
    gone = set()
    for duplicate in dedup.find_duplicates(corpus, section.method, section.threshold, section.num_perm):
        origin, kept = corpus.origins[duplicate.number], corpus.origins[duplicate.kept]
        reason = "exact_duplicate" if duplicate.exact else "near_duplicate"
        ledger.drop(origin, reason, kept=kept, similarity=duplicate.similarity)
        counts[origin.dataset_index].dropped[reason] += 1
        gone.add(duplicate.number)
    return [number for number in range(len(corpus.origins)) if number not in gone]


def _count(corpus: Corpus, counts: list[Counts], jobs: list[Job], train: list[int], val: list[int]) -> None:
    """Counts what is left, and asserts that nothing was lost unsaid."""
    for number in train:
        counts[corpus.origins[number].dataset_index].train += 1
    for number in val:
        counts[corpus.origins[number].dataset_index].val += 1
    for number in (*train, *val):
        each = counts[corpus.origins[number].dataset_index]
        each.tokens += corpus.tokens[number]
        each.learned += corpus.learned[number]
    for job, each in zip(jobs, counts, strict=True):
        each.check(job.name)


def _jobs(recipe, tokenizer, limit: int | None, written: list[Path]) -> tuple[list[Job], list[dict]]:
    """A job for each data set, all opened before any is worked on; none may read what this run writes."""
    if not recipe.datasets:
        raise ImpruverError(f"{recipe.path}: datasets is missing: name at least one data set")
    jobs, inputs = [], []
    for index, section in enumerate(recipe.datasets):
        where = recipe.where(f"datasets.{index}")
        source = open_source(section, where, recipe.base_dir, written)
        if not len(source.rows):
            raise ImpruverError(f"{where}: {section.name} has no rows in split {section.split}")
        name, converter, mapping = find_converter(
            section, source.rows.columns, source.rows.batch(0, 1)[0], where, recipe.base_dir
        )
        say(f"data set {index}: {section.name}, {len(source.rows)} rows, converter {name}")
        jobs.append(_job(recipe, index, source.rows, converter, mapping, tokenizer, limit))
        inputs += source.inputs
    return jobs, inputs


def _job(recipe, index: int, rows, converter, mapping: dict, tokenizer, limit: int | None) -> Job:
    section = recipe.datasets[index]
    return Job(
        name=section.name,
        index=index,
        rows=rows,
        converter=converter,
        mapping=mapping,
        tokenizer=tokenizer,
        limit=section.max_tokens_count or limit,
        options={
            "only_target_loss": section.only_target_loss,
            "add_bos": section.add_global_bos,
            "add_eos": section.add_global_eos,
        },
        template_kwargs=recipe.tokenizer.chat_template_kwargs or None,
        prompts_only=recipe.dedup.on == "prompt",
    )


def _estimate(jobs: list[Job]) -> None:
    """Encodes the first rows of each data set and says what they tell; writes nothing."""
    with tempfile.TemporaryDirectory() as folder:
        corpus, ledger, counts = Corpus.in_folder(Path(folder)), Ledger(), []
        try:
            for job in jobs:
                counts.append(encode_source(dataclasses.replace(job, rows=job.rows.head(DRY_ROWS)), corpus, ledger))
            for origin, tokens, learned in zip(corpus.origins, corpus.tokens, corpus.learned, strict=True):
                counts[origin.dataset_index].tokens += tokens
                counts[origin.dataset_index].learned += learned
        finally:
            corpus.close()
    output.report_estimate(jobs, counts)
