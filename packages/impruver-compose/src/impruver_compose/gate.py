"""The gate: what the first rows of each data set tell, before any work on the rest."""

import json
from collections.abc import Sequence

from impruver_core.cli.console import warn
from impruver_core.errors import CheckFailed
from impruver_core.templating.template import renders_tools

from impruver_compose import output
from impruver_compose.encode import Job, converted, encode_rows
from impruver_compose.ledger import Counts

PROBED = 100  # rows of a data set that must get a mask before any work on the rest
DRY_ROWS = 200  # rows of each data set that a dry run encodes


def probe(jobs: Sequence[Job]) -> None:
    """Encodes the first rows of each data set; CheckFailed with the row where one has no exact mask."""
    for job in jobs:
        shard, _ = encode_rows(job, 0, min(PROBED, len(job.rows)))
        for dropped in shard.dropped:
            if dropped.reason == "mask_refused":
                row = json.dumps(converted(job, dropped.row)[dropped.part].as_row(), ensure_ascii=False)
                place = f"data set {job.index} ({job.name}), row {dropped.row}, conversation {dropped.part}"
                raise CheckFailed(f"{place}: {dropped.detail}\n{row}")
        _warn_of_tools(job)


def _warn_of_tools(job: Job) -> None:
    tools = next((row["tools"] for row in job.rows.batch(0, min(PROBED, len(job.rows))) if row.get("tools")), None)
    if tools and not renders_tools(job.tokenizer, tools, job.template_kwargs):
        warn(f"data set {job.index} ({job.name}): its rows have tools, which the chat template does not render")


def estimate(jobs: Sequence[Job]) -> None:
    """Encodes the first rows of each data set and says what they tell of the whole; writes nothing."""
    counts = []
    for job in jobs:
        shard, _ = encode_rows(job, 0, min(DRY_ROWS, len(job.rows)))
        each = Counts(shard.rows, shard.converted, shard.conversations)
        for dropped in shard.dropped:
            (each.rows_dropped if dropped.part is None else each.dropped)[dropped.reason] += 1
        each.tokens = sum(line.tokens for kept in shard.kept for line in kept.lines)
        each.learned = sum(line.learned for kept in shard.kept for line in kept.lines)
        counts.append(each)
    output.report_estimate(jobs, counts)
