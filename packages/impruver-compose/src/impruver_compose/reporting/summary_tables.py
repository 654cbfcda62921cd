"""The counts as tables, header and rows: for the terminal and for the report."""

from collections.abc import Sequence
from typing import Any

from impruver_core.cli.console import format_table, log_info, print_result
from impruver_core.errors import ImpruverError

from impruver_compose.ledger import DatasetStats, Ledger
from impruver_compose.output import OutputPaths

Table = tuple[list[str], list[list[Any]]]


def build_dataset_table(jobs, counts: Sequence[DatasetStats]) -> Table:
    """What each data set brings."""
    header = ["#", "data set", "rows", "conversations", "train rows", "val rows", "tokens", "learned"]
    rows = [
        [
            j.index,
            j.name,
            c.rows,
            c.conversations,
            c.train_rows,
            c.val_rows,
            c.tokens,
            format_share(c.learned, c.tokens),
        ]
        for j, c in zip(jobs, counts, strict=True)
    ]
    return header, rows


def build_drop_table(jobs, counts: Sequence[DatasetStats]) -> Table:
    """How many were dropped, by data set and reason, and the first of them."""
    rows = [
        [job.index, job.name, reason, number, each.first.get(reason, "")]
        for job, each in zip(jobs, counts, strict=True)
        for reason, number in sorted((each.rows_dropped + each.dropped).items())
    ]
    return ["#", "data set", "dropped for", "number", "the first"], rows


def build_template_check_table(entries: Sequence[dict]) -> Table:
    """The gate of each data set, as the manifest has it; the last two columns are of the first rows."""
    header = ["#", "data set", "tokens learned", "rows without any", "end of turn learned"]
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
    return [*header, "unlike the prompt", "reasoning stripped"], rows


def format_share(part: int, whole: int) -> str:
    """In percent."""
    return f"{part / max(1, whole):.0%}"


def print_summary(paths: OutputPaths, jobs, counts: Sequence[DatasetStats], ledger: Ledger) -> None:
    """The tables, and the last line: what was written, and what comes next."""
    log_info(format_table(*build_dataset_table(jobs, counts)))
    train, val = (sum(getattr(each, name) for each in counts) for name in ("train_rows", "val_rows"))
    if ledger.lines:
        log_info(format_table(*build_drop_table(jobs, counts)))
    print_result(
        f"{paths.train}: {train} rows; {paths.val}: {val}; {len(ledger.lines)} dropped, see {paths.ledger}; "
        f"to look at: {paths.report}. Next: impruver-train with the same --config"
    )


def print_estimate(jobs, counts: Sequence[DatasetStats]) -> None:
    """What the first rows tell of the whole."""
    rows = []
    for job, each in zip(jobs, counts, strict=True):
        times = len(job.rows) / max(1, each.rows)
        usable = each.conversations - each.dropped.total()
        learned = format_share(each.learned, each.tokens)
        rows.append([job.index, job.name, len(job.rows), round(usable * times), round(each.tokens * times), learned])
    log_info(format_table(["#", "data set", "rows", "about usable", "about tokens", "learned"], rows))
    if any(each.dropped or each.rows_dropped for each in counts):
        log_info(format_table(*build_drop_table(jobs, counts)))
    if not any(each.conversations - each.dropped.total() for each in counts):
        raise ImpruverError("none of the first rows is usable")
    print_result("the data can be composed; nothing was written")
