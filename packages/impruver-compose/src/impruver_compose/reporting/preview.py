"""Prints rows as they are trained on: learned text against all other."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from impruver_core.chat_template.masking.segments import decode_segments
from impruver_core.cli.console import print_result
from impruver_core.errors import ImpruverError

from impruver_compose.encoding.encoder import BATCH, encode_rows
from impruver_compose.encoding.job import Job
from impruver_compose.records import Kept, Line
from impruver_compose.reporting.terminal_text import GREEN, GREY, in_colour, mark, readable

LEFT, RIGHT = "⟦", "⟧"  # around learned text where there are no colours


def show(jobs: Sequence[Job], count: int) -> None:
    """Prints the first `count` rows of each data set, before duplicates are judged; writes nothing."""
    if count < 1:
        raise ImpruverError(f"--show must be at least 1, not {count}")
    learned, other = mark(GREEN, LEFT, RIGHT)("learned"), mark(GREY)("not learned")
    print_result(f"{learned}, {other if in_colour() else 'all else is not'}")
    for job in jobs:
        reasons: Counter[str] = Counter()
        rows = list(islice(_rows(job, count, reasons), count))
        for kept, line in rows:
            place = f"data set {job.index} ({job.name}), row {kept.row}, conversation {kept.part}"
            title = f"{place}: {line.tokens} tokens, {line.learned} learned"
            print_result(f"\n{title}\n{_painted(job, line)}".removesuffix("\n"))
        if len(rows) < count:
            told = "".join(f"; {number} {reason}" for reason, number in sorted(reasons.items()))
            print_result(f"\ndata set {job.index} ({job.name}) gives {len(rows)} rows{told}")


def _rows(job: Job, count: int, reasons: Counter[str]) -> Iterator[tuple[Kept, Line]]:
    """The rows of a data set as they are made; counts in `reasons` what is dropped."""
    step = min(BATCH, max(count, 10))
    for start in range(0, len(job.rows), step):
        shard, _ = encode_rows(job, start, min(start + step, len(job.rows)))
        reasons.update(dropped.reason for dropped in shard.dropped)
        yield from ((kept, line) for kept in shard.kept for line in kept.lines)


def _painted(job: Job, line: Line) -> str:
    row = json.loads(line.content)
    painters = mark(GREY), mark(GREEN, LEFT, RIGHT)
    reserved = "" if in_colour() else LEFT + RIGHT
    found = decode_segments(job.tokenizer, row["input_ids"], row["labels"])
    return "".join(painters[learned](readable(text, reserved)) for text, learned in found)
