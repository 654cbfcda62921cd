"""Statistics as tables, header and rows, for the terminal and the report; the lines that a run ends with."""

from collections.abc import Sequence

import numpy as np
from impruver_core.cli.console import format_table, log_info, print_result, warn
from impruver_core.errors import ImpruverError

from impruver_compose.dataset_stats import DatasetStats
from impruver_compose.field_usage import format_unused
from impruver_compose.output import OutputPaths

WAYS_OUT = {
    "nothing_to_learn": "what is to be trained on needs the role assistant",
    "control_text": "tokenizer.control_text: text encodes text of control tokens as ordinary text, keep as the tokens",
    "contaminated": "they hold text of the benchmarks in decontaminate: its `on` and `mapping` say which text counts",
    "prompt_in_val": "they have the prompts of a data set with use: val",
    "too_long": "raise max_tokens_count, or set the data set's on_overflow: trim_turns",
}
Table = tuple[list[str], list[list[str | int]]]  # header, rows


def build_dataset_table(stats: Sequence[DatasetStats]) -> Table:
    """Builds the table of what each data set brings."""
    names = ("index", "name", "rows", "conversations", "train_rows", "val_rows", "tokens")
    header = ["#", "data set", "rows", "conversations", "train rows", "val rows", "tokens", "trained on"]
    rows = [[*(getattr(each, name) for name in names), format_share(each.learned, each.tokens)] for each in stats]
    return header, rows


def build_drop_table(stats: Sequence[DatasetStats]) -> Table:
    """Builds the table of how many were dropped by data set and reason, each with the first of them."""
    rows = [
        [each.index, each.name, reason, count, each.first.get(reason, "")]
        for each in stats
        for reason, count in sorted((each.rows_dropped + each.dropped).items())
    ]
    return ["#", "data set", "dropped for", "number", "the first"], rows


def build_template_check_table(entries: Sequence[dict]) -> Table:
    """Builds the table of the manifest's `gate`; its last two columns are of the first rows."""
    header = ["#", "data set", "tokens trained on", "rows without any", "end of turn trained on", "unlike the prompt"]
    rows = [
        [
            each["dataset_index"],
            each["dataset"],
            f"{each['learned_share']:.0%}",
            each["nothing_to_learn"],
            f"{each['ended']:,} of {each['rows']:,}",
            f"{each['unlike_prompt']:,} of {each['probed']:,}",
            f"{each['reasoning_stripped']:,} of {each['probed']:,}",
        ]
        for each in entries
    ]
    return [*header, "reasoning stripped"], rows


def build_unused_table(entries: Sequence[dict]) -> Table:
    """Builds the table of what nothing reads, from the manifest's `gate`."""
    rows = [
        [
            entry["dataset_index"],
            entry["dataset"],
            each["name"],
            each["rows"],
            f"row {each['first']}: {each['example']}",
        ]
        for entry in entries
        for each in entry.get("unused", ())
    ]
    return ["#", "data set", "not read", "rows", "the first"], rows


def format_share(part: int, whole: int) -> str:
    """Formats a share in percent."""
    return f"{part / max(1, whole):.0%}"


def print_template_checks(entries: Sequence[dict]) -> None:
    """Prints the template checks as a table, and their notes and warnings."""
    header, rows = build_template_check_table(entries)
    log_info(format_table(header[:5], [row[:5] for row in rows]))  # warnings speak of the others
    for entry in entries:
        where = f"data set {entry['dataset_index']} ({entry['dataset']})"
        for note in entry.get("notes", ()):
            log_info(f"note: {where}: {note}")
        for warning in entry["warnings"]:
            warn(f"{where}: {warning}")
        if entry.get("unused"):
            log_info(f"note: {where}: nothing reads {format_unused(entry['unused'])}")


def check_any_left(numbers: np.ndarray, stats: Sequence[DatasetStats]) -> None:
    """ImpruverError, with what was dropped and what to do, if no conversation is left."""
    if not len(numbers):
        total = sum(each.rows for each in stats)
        ways = [f"{reason}: {way}" for reason, way in WAYS_OUT.items() if any(reason in each.dropped for each in stats)]
        table = format_table(*build_drop_table(stats))
        raise ImpruverError("\n".join([f"no usable rows are left of {total}", table, *ways]))


def build_benchmark_table(benchmarks: Sequence[dict]) -> Table:
    """Builds the table of the manifest's `decontaminate`."""
    header = ["#", "benchmark", "on", "rows", "looked for", "found in the data"]
    names = ("name", "on", "rows", "searched", "affected")
    return header, [[index, *(each[name] for name in names)] for index, each in enumerate(benchmarks)]


def print_summary(paths: OutputPaths, stats: Sequence[DatasetStats], benchmarks: Sequence[dict] = ()) -> None:
    """Prints the tables, and in the last line what was written and what comes next.

    `benchmarks`: the manifest's `decontaminate`.
    """
    log_info(format_table(*build_dataset_table(stats)))
    train, val = (sum(getattr(each, name) for each in stats) for name in ("train_rows", "val_rows"))
    dropped = sum(each.count_dropped() for each in stats)
    if dropped:
        log_info(format_table(*build_drop_table(stats)))
    found = ""
    if benchmarks:
        log_info(format_table(*build_benchmark_table(benchmarks)))
        affected = sum(each["affected"] for each in benchmarks)
        found = f"; {affected} rows of benchmarks found in the data, see {paths.contaminated}"
    print_result(
        f"{paths.train}: {train} rows; {paths.val}: {val}; {dropped} dropped, see {paths.ledger}{found}; "
        f"to look at: {paths.report}. Next: impruver-train with the same --config"
    )


def print_estimate(stats: Sequence[DatasetStats], totals: Sequence[int]) -> None:
    """Prints what the first rows tell of all, `totals` of each data set; ImpruverError if none of them is usable."""
    rows = []
    for each, total in zip(stats, totals, strict=True):
        factor, usable = total / max(1, each.rows), each.conversations - each.dropped.total()
        share = format_share(each.learned, each.tokens)
        rows.append([each.index, each.name, total, round(usable * factor), round(each.tokens * factor), share])
    log_info(format_table(["#", "data set", "rows", "about usable", "about tokens", "trained on"], rows))
    if any(each.count_dropped() for each in stats):
        log_info(format_table(*build_drop_table(stats)))
    if not any(each.conversations - each.dropped.total() for each in stats):
        raise ImpruverError("none of the first rows is usable")
    print_result("the data can be composed; nothing was written")
