"""The HTML report: data sets, lengths, drops, template checks, sample rows, closest duplicates."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import PurePath

import numpy as np
from impruver_core.labels import decode_segments
from impruver_core.reporting import charts, html

from impruver_compose.corpus import Corpus, RowOrigin
from impruver_compose.dataset_stats import DatasetStats
from impruver_compose.dedup.duplicates import Duplicates
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.output import OutputPaths
from impruver_compose.reporting import summary_tables
from impruver_compose.reporting.text_diff import build_diff_spans
from impruver_compose.selection import Selection

BINS = 48  # of the histogram of lengths
PAIRS = 10  # of duplicates
SAMPLES, LONG_SAMPLE = 6, 2000  # rows, at least one of each data set up to twice as many; tokens
CHARACTERS = 6000  # of a text that are shown


def render_report(
    paths: OutputPaths,
    corpus: Corpus,
    selection: Selection,
    jobs: Sequence[DatasetJob],
    stats: Sequence[DatasetStats],
    duplicates: Duplicates,
    template_checks: Sequence[dict],
    benchmarks: Sequence[dict] = (),
) -> str:
    """Renders the report as HTML; `template_checks` are the manifest's `gate`, `benchmarks` its `decontaminate`."""
    tokens = corpus.tokens[np.concatenate([selection.train_rows, selection.val_rows])]
    sections = [
        html.build_section("", "", _build_facts(stats)),
        _build_datasets(stats),
        _build_lengths(tokens, jobs, stats),
        _build_drops(stats, paths.ledger.name),
        _build_benchmarks(benchmarks, paths.contaminated.name),
        _build_unused(template_checks),
        build_template_check_section(template_checks),
        _build_samples(corpus, jobs, selection.train_rows),
        _build_duplicates(corpus, duplicates),
    ]
    lead = f"What impruver-compose made of {len(jobs)} data set{'s' * (len(jobs) > 1)}; beside it {paths.val.name}."
    return html.render_page(paths.train.name, lead, [section for section in sections if section])


def _build_facts(stats: Sequence[DatasetStats]) -> dict:
    facts = {"rows to train": "train_rows", "rows to validate": "val_rows", "tokens": "tokens"}
    facts = {title: sum(getattr(each, name) for each in stats) for title, name in facts.items()}
    share = summary_tables.format_share(sum(each.learned for each in stats), facts["tokens"])
    return html.build_facts(facts | {"trained on": share, "dropped": sum(each.count_dropped() for each in stats)})


def _build_datasets(stats: Sequence[DatasetStats]) -> dict:
    named = {f"{each.index} {PurePath(each.name).name}": each for each in stats}
    rows = {name: (each.train_rows + each.val_rows, each.val_rows) for name, each in named.items()}
    tokens = {name: (each.tokens, each.learned) for name, each in named.items()}
    return html.build_section(
        "Data sets",
        "Rows and tokens as they are written: unfolded and repeated where the recipe asks for it.",
        charts.render_bars("Rows by data set", rows, ("train", "val")),
        charts.render_bars("Tokens by data set", tokens, ("not trained on", "trained on")),
        html.build_table(*summary_tables.build_dataset_table(stats)),
    )


def _build_lengths(tokens: np.ndarray, jobs: Sequence[DatasetJob], stats: Sequence[DatasetStats]) -> dict:
    longest = int(tokens.max(initial=1))
    limits = sorted({job.max_length for job in jobs if job.max_length})
    near = {f"max_tokens_count {limit:,}": limit for limit in limits if limit <= 3 * longest}
    width = max(1, -(-max([longest, *near.values()]) // BINS))
    edges = np.arange(0, longest + width + 1, width)
    counts, _ = np.histogram(tokens, edges)
    half, most = (int(np.percentile(tokens, share, method="lower")) for share in (50, 95))
    note = f"Half of the rows have up to {half:,} tokens, 95% up to {most:,}, the longest {longest:,}."
    far = [f"{limit:,}" for limit in limits if limit > 3 * longest]
    if far:
        note += f" max_tokens_count {' and '.join(far)} is far to the right of the chart."
    too_long = sum(each.dropped["too_long"] for each in stats)
    note += f" Longer than its limit, and dropped: {too_long:,}." if limits else " No limit is known."
    trimmed = sum(each.trimmed for each in stats)
    note += f" Trimmed: {trimmed:,}." if trimmed else ""
    chart = charts.render_histogram("Rows by their tokens", edges.tolist(), counts.tolist(), near, "tokens", "rows")
    return html.build_section("Lengths", note, chart)


def _build_drops(stats: Sequence[DatasetStats], ledger: str) -> dict:
    reasons = Counter()
    for each in stats:
        reasons.update(each.rows_dropped + each.dropped)
    if not reasons:
        return html.build_section("Dropped", "Nothing was dropped.")
    return html.build_section(
        "Dropped",
        f"Each with its data set, row and detail is in {ledger}.",
        charts.render_bars("Dropped, by reason", {reason: [count] for reason, count in reasons.most_common()}),
        html.build_table(*summary_tables.build_drop_table(stats)),
    )


def _build_benchmarks(benchmarks: Sequence[dict], name: str) -> dict | None:
    if not benchmarks:
        return None
    return html.build_section(
        "Benchmarks",
        f"Conversations that hold text of these were dropped as contaminated. {name} lists the benchmarks' rows whose "
        "text was found, with the conversations.",
        html.build_table(*summary_tables.build_benchmark_table(benchmarks)),
    )


def _build_unused(entries: Sequence[dict]) -> dict | None:
    header, rows = summary_tables.build_unused_table(entries)
    note = "Columns, and keys of messages, that neither the converter nor the chat template reads."
    return html.build_section("Not read", note, html.build_table(header, rows)) if rows else None


def build_template_check_section(entries: Sequence[dict]) -> dict:
    """Builds the section of the template checks: table, warnings and notes, where training and the prompt differ."""
    remarks = [(each["dataset_index"], [*each["warnings"], *each.get("notes", ())]) for each in entries]
    warnings = [(f"data set {index}", [("\n\n".join(texts), "plain")]) for index, texts in remarks if texts]
    pairs = []
    for entry in entries:
        example = entry["example"]
        if example:
            trained, prompt = build_diff_spans(example["trained"], example["prompt"])
            caption = f"data set {entry['dataset_index']}, row {example['row']}, before the last answer"
            pairs.append((caption, ("in training", trained), ("at inference", prompt)))
    return html.build_section(
        "Template checks",
        "Whether the model learns to stop and is prompted as it was trained; the last two columns are of the first "
        "rows.",
        html.build_table(*summary_tables.build_template_check_table(entries)),
        html.build_texts(warnings) if warnings else None,
        html.build_pairs(pairs) if pairs else None,
    )


def _build_samples(corpus: Corpus, jobs: Sequence[DatasetJob], train_rows: np.ndarray) -> dict:
    """Shows the first rows of train, of each data set; those too long to be read only if there are no others."""
    wanted = max(1, SAMPLES // len(jobs))
    dataset = corpus.get_datasets_of_rows(train_rows)
    samples = []
    for job in jobs:
        own = train_rows[dataset == job.index]
        short = own[corpus.tokens[own] <= LONG_SAMPLE]
        first = dict.fromkeys((short if len(short) else own)[: wanted * 2].tolist())
        samples += [(job, row) for row in [*first][:wanted]]
    return html.build_section(
        "Sample rows",
        "Text on green is trained on; the rest is only read. Special tokens in violet.",
        html.build_texts(_build_sample(corpus, job, row) for job, row in samples[: 2 * SAMPLES]),
    )


def _build_sample(corpus: Corpus, job: DatasetJob, number: int) -> tuple[str, list[html.Span]]:
    row = json.loads(corpus.read_bytes("content", number))
    ids, labels = (row[name][:LONG_SAMPLE] for name in ("input_ids", "labels"))
    segments = decode_segments(job.tokenizer, ids, labels)
    spans = html.truncate_spans([(text, "learned" if trained else "") for text, trained in segments], CHARACTERS)
    special = [token.content for token in job.tokenizer.added_tokens_decoder.values() if token.special]
    where = _format_origin(corpus.get_origin(corpus.find_conversation(number)))
    caption = f"{where}: {corpus.tokens[number]:,} tokens, {corpus.target_tokens[number]:,} trained on"
    return caption, html.mark_strings(spans, special)


def _build_duplicates(corpus: Corpus, duplicates: Duplicates) -> dict | None:
    """Shows the closest pairs side by side, near-duplicates first."""
    if not len(duplicates):
        return None
    exact = int(duplicates.exact.sum())
    closest = np.lexsort((duplicates.number, -duplicates.similarity, duplicates.exact))[:PAIRS]
    pairs = []
    for each in map(duplicates.get, closest.tolist()):
        numbers = {"kept": each.kept, "dropped": each.number}
        texts = build_diff_spans(*(_read_conversation(corpus, number) for number in numbers.values()))
        sides = [
            (f"{name}: {_format_origin(corpus.get_origin(number))}", html.truncate_spans(spans, CHARACTERS))
            for (name, number), spans in zip(numbers.items(), texts, strict=True)
        ]
        pairs.append(("exact duplicate" if each.exact else f"similarity {each.similarity:.4f}", *sides))
    return html.build_section(
        "Duplicates",
        f"The {len(pairs)} closest of {len(duplicates):,} pairs, near-duplicates ({len(duplicates) - exact:,}) first; "
        f"exact: {exact:,}. Differences are marked.",
        html.build_pairs(pairs),
    )


def _read_conversation(corpus: Corpus, number: int) -> str:
    """Reads the text of a conversation, or of a document."""
    row = corpus.read_conversation(number)
    if "messages" not in row:
        return row["text"]
    return "\n\n".join(_format_message(message) for message in row["messages"])


def _format_message(message: dict) -> str:
    content, calls = message.get("content"), message.get("tool_calls")
    if not isinstance(content, str):
        content = json.dumps(content, ensure_ascii=False) if content else ""
    calls = json.dumps(calls, ensure_ascii=False) if calls else ""
    return f"{message['role']}: " + "\n".join(filter(None, [content, calls]))


def _format_origin(origin: RowOrigin) -> str:
    part = f", conversation {origin.part}" if origin.part else ""
    return f"data set {origin.dataset_index} ({PurePath(origin.dataset).name}), row {origin.row}{part}"
