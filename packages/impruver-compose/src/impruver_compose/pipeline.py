"""The steps: load, convert, encode, decontaminate, deduplicate, split, resample, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from impruver_core.chat_template.masking.loss_mask import check_fast_tokenizer
from impruver_core.cli.console import log_info, warn
from impruver_core.errors import ImpruverError
from impruver_core.recipe.loading import resolve_recipe
from impruver_core.tokenizer import compute_fingerprint, load_tokenizer

from impruver_compose import disk_estimate, output, selection, template_checks
from impruver_compose.corpus import Corpus
from impruver_compose.dataset_stats import DatasetStats, count_encoded
from impruver_compose.decontamination.benchmarks import Benchmark, open_benchmark
from impruver_compose.decontamination.search import BenchmarkIndex, ContaminationResult, find_contaminated
from impruver_compose.dedup.duplicates import Duplicates
from impruver_compose.dedup.search import find_duplicates
from impruver_compose.encoding import cache
from impruver_compose.encoding.job import DatasetJob, open_job, resolve_max_length
from impruver_compose.encoding.text_encoder import find_encoder
from impruver_compose.ledger import DroppedGroup, Ledger, iterate_ledger
from impruver_compose.reporting import html_report, summary_tables, terminal
from impruver_compose.reporting.duplicate_warning import warn_about_many_duplicates
from impruver_compose.sources.files import warn_about_copies
from impruver_compose.stages.workspace import Workspace, open_workspace, resolve_work_dir
from impruver_compose.torch_guard import import_libraries

if TYPE_CHECKING:
    from impruver_core.recipe.loading import Recipe


class ChosenRows(NamedTuple):
    """What train and val get, what was dropped for it, the duplicates, and what holds text of benchmarks."""

    selected: selection.Selection
    dropped: list[DroppedGroup]
    duplicates: Duplicates
    contamination: ContaminationResult | None


def compose(recipe: Recipe, dry_run: bool = False, overwrite: bool = False, num_proc: int | None = None) -> None:
    """Composes train and val of a recipe; no file gets its name before all of them are ready."""
    paths, num_proc = _resolve_paths(recipe), cache.resolve_num_proc(num_proc)
    _check_work_dir(recipe, paths)
    output.check_outputs(paths, dry_run, overwrite)

    # Load: the tokenizer, and each data set with its converter.
    jobs, max_length = _load(recipe, paths.examples)
    tokenizer, fingerprint = jobs[0].tokenizer, compute_fingerprint(jobs[0].tokenizer)
    benchmarks = BenchmarkIndex(_open_benchmarks(recipe, paths)) if recipe.decontaminate else None
    if dry_run:
        _estimate(jobs, recipe, paths)
        return

    # Convert and encode what the cache does not have, after the template was tried on the first rows.
    with (
        open_workspace(recipe.compose, recipe.locate("compose"), num_proc) as workspace,
        cache.open_entries(jobs, fingerprint, workspace.work_dir) as entries,
    ):
        jobs = [cache.pin_day(job, entry) for job, entry in zip(jobs, entries, strict=True)]
        probes = [template_checks.probe_template(job) for job in jobs]
        jobs = cache.encode_missing_shards(jobs, entries, workspace.engine)
        shards = [[slot.path for slot in entry.shards] for entry in entries]
        stats = [count_encoded(job.name, job.index, own) for job, own in zip(jobs, shards, strict=True)]
        for job, each in zip(jobs, stats, strict=True):
            template_checks.check_strict_columns(job, each)

        # Choose: decontaminate, deduplicate, split, resample.
        corpus = Corpus([job.name for job in jobs], shards, workspace.arrays)
        chosen = _choose_rows(recipe, corpus, stats, benchmarks, workspace)

        # Write.
        checks = [template_checks.build_template_check(*each) for each in zip(jobs, stats, probes, strict=True)]
        summary_tables.print_template_checks(checks)
        contamination = chosen.contamination
        found = contamination.describe() if contamination else []
        manifest = output.build_run_manifest(
            resolve_recipe(recipe),
            tokenizer,
            fingerprint,
            max_tokens_count=max_length,
            days=[job.day for job in jobs],
            inputs=[entry for job in jobs for entry in job.inputs],
            cache=[entry.folder.name for entry in entries],
            encoders=[job.encoder.describe() for job in jobs],
            counts=[each.to_dict() for each in stats],
            gate=checks,
            **({"decontaminate": found} if found else {}),
        )
        report = html_report.render_report(
            paths, corpus, chosen.selected, jobs, stats, chosen.duplicates, checks, found
        )
        with output.lock_outputs(paths, overwrite):  # checks again: another run may have written since
            if overwrite or not output.outputs_up_to_date(paths, manifest):
                lines = iterate_ledger(corpus, chosen.dropped)
                ledger = Ledger(lines, sum(each.count_dropped() for each in stats))
                eval_rows = contamination.build_eval_rows(corpus) if contamination else []
                output.publish_outputs(paths, corpus, chosen.selected, ledger, report, eval_rows, manifest)
        cache.remove_old_entries()
        summary_tables.print_summary(paths, stats, found)
        selection.check_masks_found(stats, paths.ledger)


def _choose_rows(
    recipe: Recipe,
    corpus: Corpus,
    stats: Sequence[DatasetStats],
    benchmarks: BenchmarkIndex | None,
    workspace: Workspace,
) -> ChosenRows:
    """Decontaminates, deduplicates, splits and resamples; what is dropped is counted in `stats`."""
    # Decontaminate: what is validated on may be a benchmark itself.
    uses = selection.build_use_masks([section.use for section in recipe.datasets])
    numbers, contamination, dropped = selection.order_by_use(corpus, uses), None, []
    if benchmarks:
        contamination = find_contaminated(corpus, selection.list_trainable(corpus, numbers, uses), benchmarks)
        numbers, group = selection.drop_contaminated(corpus, numbers, contamination, stats)
        dropped.append(group)

    # Deduplicate.
    duplicates = find_duplicates(corpus, numbers, recipe.dedup, workspace)
    numbers, repeated = selection.drop_duplicates(corpus, numbers, duplicates, stats)
    numbers, prompts = selection.drop_val_prompts(corpus, numbers, uses, stats)
    summary_tables.check_any_left(selection.list_trainable(corpus, numbers, uses), stats)
    warn_about_many_duplicates(corpus, duplicates, stats, recipe.dedup)

    # Split.
    train, val = selection.split_train_val(corpus, numbers, uses, recipe.split, recipe.seed)
    selection.warn_about_leaks(corpus, train, val, recipe.dedup, workspace)

    # Resample.
    weights = [section.weight for section in recipe.datasets]
    train, left_out = selection.resample_train(corpus, train, weights, recipe.seed, stats)
    selected = selection.select_rows(corpus, train, val, stats)
    return ChosenRows(selected, [*dropped, *repeated, *prompts, *left_out], duplicates, contamination)


def show_rows(recipe: Recipe, count: int) -> None:
    """Prints the first rows of each data set as they are trained on; writes nothing."""
    jobs, _ = _load(recipe)
    terminal.print_rows(jobs, count)


def explain_row(recipe: Recipe, reference: str) -> None:
    """Prints what became of a row in the last run; writes nothing."""
    row = terminal.parse_reference(reference)
    previous = terminal.load_previous_run(_resolve_paths(recipe))
    import_libraries()
    terminal.print_explanation(_open_jobs(recipe), previous, row, lambda: _open_benchmarks(recipe))


def _resolve_paths(recipe: Recipe) -> output.OutputPaths:
    val_path = next(iter(recipe.val_paths.values()), None)
    benchmarks = bool(recipe.decontaminate)
    return output.resolve_output_paths(
        recipe.train_path, val_path, recipe.path, recipe.locate, recipe.compose, benchmarks
    )


def _check_work_dir(recipe: Recipe, paths: output.OutputPaths) -> None:
    """ImpruverError, before any work, for a `work_dir` that can't be one, or that is where an output file goes."""
    where = recipe.locate("compose")
    work_dir = resolve_work_dir(recipe.compose, where)
    if {work_dir, *work_dir.parents} & {path.absolute() for path in paths.examples}:
        raise ImpruverError(f"{where}.work_dir: {work_dir} is where an output goes: name another folder")


def _load(recipe: Recipe, outputs: Sequence[Path] = ()) -> tuple[list[DatasetJob], int | None]:
    """Loads the tokenizer and the data sets; with their jobs the longest row where a data set says nothing else."""
    import_libraries()
    tokenizer = load_tokenizer(recipe.tokenizer, recipe.model.name, recipe_dir=recipe.base_dir, warn=warn)
    check_fast_tokenizer(tokenizer)
    max_length = resolve_max_length(recipe.tokenizer.max_tokens_count, tokenizer, recipe.model, recipe.base_dir)
    section = recipe.tokenizer
    shared = {"tokenizer": tokenizer, "template_kwargs": section.chat_template_kwargs or {}}
    shared |= {"control_text": section.control_text, "own_tokens": section.own_tokens}
    shared["encoder"] = find_encoder(tokenizer, recipe.compose.encoder)
    jobs = _open_jobs(recipe, outputs)
    return [replace(job, max_length=job.section.max_tokens_count or max_length, **shared) for job in jobs], max_length


def _open_jobs(recipe: Recipe, outputs: Sequence[Path] = ()) -> list[DatasetJob]:
    """Opens all data sets before any of them is worked on; none may hold one of the `outputs`."""
    if not recipe.datasets:
        raise ImpruverError(f"{recipe.path}: datasets is missing: name at least one data set")
    jobs = [
        open_job(index, section, recipe.dedup, recipe.locate(f"datasets.{index}"), recipe.base_dir, outputs)
        for index, section in enumerate(recipe.datasets)
    ]
    if all(section.use == "val" for section in recipe.datasets):
        raise ImpruverError(f"{recipe.path}: datasets: all have use: val: nothing is left for train_path")
    warn_about_copies(entry for job in jobs for entry in job.inputs)
    return jobs


def _open_benchmarks(recipe: Recipe, paths: output.OutputPaths | None = None) -> list[Benchmark]:
    """Opens the benchmarks; none may hold one of the outputs."""
    outputs = paths.examples if paths else []
    return [
        open_benchmark(index, section, recipe.locate(f"decontaminate.{index}"), recipe.base_dir, outputs)
        for index, section in enumerate(recipe.decontaminate)
    ]


def _estimate(jobs: Sequence[DatasetJob], recipe: Recipe, paths: output.OutputPaths) -> None:
    """Tries the template on the first rows, and prints what they tell of all; writes nothing."""
    for job in jobs:
        log_info(f"data set {job.index}: {job.name}, encoded by {job.encoder.describe()}")
    probes = [template_checks.probe_template(job) for job in jobs]
    stats, shards = zip(*map(template_checks.estimate_stats, jobs), strict=True)
    checks = [template_checks.build_template_check(*each) for each in zip(jobs, stats, probes, strict=True)]
    summary_tables.print_template_checks(checks)
    space = disk_estimate.estimate_space(jobs, shards, recipe.split, paths)
    disk_estimate.print_space(space, paths, resolve_work_dir(recipe.compose, recipe.locate("compose")))
    summary_tables.print_estimate(stats, [len(job.rows) for job in jobs])
