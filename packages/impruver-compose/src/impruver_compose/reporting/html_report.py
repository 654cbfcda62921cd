"""The report: what was made of each data set, how long rows are, what is learned, what was dropped and why."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from impruver_core.reporting import charts, html

from impruver_compose.dedup.near_duplicates import Duplicate
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.ledger import DatasetStats
from impruver_compose.output import OutputPaths
from impruver_compose.reporting.samples import build_closest_pairs, build_prompt_pairs, build_samples
from impruver_compose.reporting.summary_tables import (
    build_dataset_table,
    build_drop_table,
    build_template_check_table,
    format_share,
)
from impruver_compose.storage.corpus import Corpus

BINS = 48


def render_report(
    paths: OutputPaths,
    corpus: Corpus,
    jobs: Sequence[DatasetJob],
    counts: Sequence[DatasetStats],
    lines: Sequence[np.ndarray],
    duplicates: Sequence[Duplicate],
    gate: Sequence[dict],
) -> str:
    """HTML of the report; `lines`: numbers of the lines of train and val, `gate`: a record for each data set."""
    names = [f"{job.index} {PurePath(job.name).name}" for job in jobs]
    written = np.concatenate([np.asarray(each, np.int64) for each in lines])
    sections = [
        html.build_section("", "", _build_facts(counts)),
        _build_datasets(names, jobs, counts),
        _build_lengths(corpus.tokens[written], jobs, counts),
        _build_dropped(names, jobs, counts, paths.ledger.name),
        _build_template_checks(gate),
        build_samples(corpus, jobs, np.asarray(lines[0], np.int64)),
        build_closest_pairs(corpus, duplicates),
    ]
    lead = f"What impruver-compose made of {len(jobs)} data set{'s' * (len(jobs) > 1)}; beside it {paths.val.name}."
    return html.render_page(paths.train.name, lead, [section for section in sections if section])


def _build_facts(counts: Sequence[DatasetStats]) -> dict:
    def total(name: str) -> int:
        return sum(getattr(each, name) for each in counts)

    return html.build_facts(
        {
            "rows to train": total("train_rows"),
            "rows to validate": total("val_rows"),
            "tokens": total("tokens"),
            "learned": format_share(total("learned"), total("tokens")),
            "dropped": sum(each.dropped.total() + each.rows_dropped.total() for each in counts),
        }
    )


def _build_datasets(names: Sequence[str], jobs: Sequence[DatasetJob], counts: Sequence[DatasetStats]) -> dict:
    rows = {name: (each.train_rows + each.val_rows, each.val_rows) for name, each in zip(names, counts, strict=True)}
    tokens = {name: (each.tokens, each.learned) for name, each in zip(names, counts, strict=True)}
    return html.build_section(
        "Data sets",
        "Rows and tokens as they are written: unfolded and repeated where the recipe asks for it.",
        charts.render_bars("Rows by data set", rows, ("train", "val")),
        charts.render_bars("Tokens by data set", tokens, ("not learned", "learned")),
        html.build_table(*build_dataset_table(jobs, counts)),
    )


def _build_lengths(tokens: np.ndarray, jobs: Sequence[DatasetJob], counts: Sequence[DatasetStats]) -> dict:
    longest = int(tokens.max(initial=1))
    limits = sorted({job.limit for job in jobs if job.limit})
    near = {f"max_tokens_count {limit:,}": limit for limit in limits if limit <= 3 * longest}
    width = max(1, -(-max([longest, *near.values()]) // BINS))
    edges = np.arange(0, longest + width + 1, width)
    found, _ = np.histogram(tokens, edges)
    half, most = (int(np.percentile(tokens, share, method="lower")) for share in (50, 95))
    note = f"Half of the rows have up to {half:,} tokens, 95% up to {most:,}, the longest {longest:,}."
    far = [f"{limit:,}" for limit in limits if limit > 3 * longest]
    if far:
        note += f" max_tokens_count {' and '.join(far)} is far to the right of the chart."
    too_long = sum(each.dropped["too_long"] for each in counts)
    note += f" Longer than its limit, and dropped: {too_long:,}." if limits else " No limit is known."
    trimmed = sum(each.trimmed for each in counts)
    note += f" Trimmed: {trimmed:,}." if trimmed else ""
    chart = charts.render_histogram("Rows by their tokens", edges.tolist(), found.tolist(), near, "tokens", "rows")
    return html.build_section("Lengths", note, chart)


def _build_dropped(
    names: Sequence[str], jobs: Sequence[DatasetJob], counts: Sequence[DatasetStats], ledger: str
) -> dict:
    reasons = Counter()
    for each in counts:
        reasons.update(each.rows_dropped + each.dropped)
    if not reasons:
        return html.build_section("Dropped", "Nothing was dropped.")
    return html.build_section(
        "Dropped",
        f"Each with its data set, row and detail is in {ledger}.",
        charts.render_bars("Dropped, by reason", {reason: [number] for reason, number in reasons.most_common()}),
        html.build_table(*build_drop_table(jobs, counts)),
    )


def _build_template_checks(entries: Sequence[dict]) -> dict:
    note = (
        "Whether the model learns to stop and is asked as it was trained; the last two columns are of the first rows."
    )
    warnings = [
        (f"data set {each['dataset_index']}", [("\n\n".join(each["warnings"]), "plain")])
        for each in entries
        if each["warnings"]
    ]
    return html.build_section(
        "The gate",
        note,
        html.build_table(*build_template_check_table(entries)),
        html.build_texts(warnings) if warnings else None,
        build_prompt_pairs(entries),
    )
