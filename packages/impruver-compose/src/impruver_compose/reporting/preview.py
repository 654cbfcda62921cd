"""Prints rows as they are trained on: learned text against all other."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

from impruver_core.chat_template.masking.segments import decode_segments
from impruver_core.cli.console import print_result
from impruver_core.errors import ImpruverError

from impruver_compose.encoding.encoder import BATCH, encode_rows
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.records import EncodedConversation, TokenRow
from impruver_compose.reporting.terminal_text import GREEN, GREY, format_visible, make_marker, supports_colour

LEFT, RIGHT = "⟦", "⟧"  # around learned text where there are no colours


def print_rows(jobs: Sequence[DatasetJob], count: int) -> None:
    """Prints the first `count` rows of each data set, before duplicates are judged; writes nothing."""
    if count < 1:
        raise ImpruverError(f"--show must be at least 1, not {count}")
    learned, other = make_marker(GREEN, LEFT, RIGHT)("learned"), make_marker(GREY)("not learned")
    print_result(f"{learned}, {other if supports_colour() else 'all else is not'}")
    for job in jobs:
        reasons: Counter[str] = Counter()
        rows = list(islice(_encode_first_rows(job, count, reasons), count))
        for kept, line in rows:
            place = f"data set {job.index} ({job.name}), row {kept.row}, conversation {kept.part}"
            title = f"{place}: {line.tokens} tokens, {line.learned} learned"
            print_result(f"\n{title}\n{_format_row(job, line)}".removesuffix("\n"))
        if len(rows) < count:
            told = "".join(f"; {number} {reason}" for reason, number in sorted(reasons.items()))
            print_result(f"\ndata set {job.index} ({job.name}) gives {len(rows)} rows{told}")


def _encode_first_rows(
    job: DatasetJob, count: int, reasons: Counter[str]
) -> Iterator[tuple[EncodedConversation, TokenRow]]:
    """The rows of a data set as they are made; counts in `reasons` what is dropped."""
    step = min(BATCH, max(count, 10))
    for start in range(0, len(job.rows), step):
        shard, _ = encode_rows(job, start, min(start + step, len(job.rows)))
        reasons.update(dropped.reason for dropped in shard.dropped)
        yield from ((kept, line) for kept in shard.kept for line in kept.lines)


def _format_row(job: DatasetJob, line: TokenRow) -> str:
    row = json.loads(line.content)
    painters = make_marker(GREY), make_marker(GREEN, LEFT, RIGHT)
    reserved = "" if supports_colour() else LEFT + RIGHT
    found = decode_segments(job.tokenizer, row["input_ids"], row["labels"])
    return "".join(painters[learned](format_visible(text, reserved)) for text, learned in found)
