"""`--show`: print rows with what is trained on marked; texts made readable for a terminal."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from impruver_core.chat_template.masking.segments import decode_segments
from impruver_core.cli.console import print_result
from impruver_core.errors import ImpruverError

from impruver_compose.encoding.encoder import BATCH, encode_rows
from impruver_compose.encoding.job import DatasetJob
from impruver_compose.storage.records import EncodedConversation, TokenRow

GREEN, RED, GREY = "32", "31", "90"
LEFT, RIGHT = "⟦", "⟧"  # around text that is trained on where there are no colours
BLANKS = re.compile(r"  +|^ | $", re.MULTILINE)  # those that would be overlooked


def print_rows(jobs: Sequence[DatasetJob], count: int) -> None:
    """Prints the first `count` token rows of each data set, before duplicates are judged; writes nothing."""
    if count < 1:
        raise ImpruverError(f"--show must be at least 1, not {count}")
    trained, other = make_marker(GREEN, LEFT, RIGHT)("trained on"), make_marker(GREY)("not trained on")
    print_result(f"{trained}, {other if supports_colour() else 'all else is not'}")
    for job in jobs:
        reasons: Counter[str] = Counter()
        rows = list(islice(_encode_first_rows(job, count, reasons), count))
        for conversation, row in rows:
            where = f"data set {job.index} ({job.name}), row {conversation.row}, conversation {conversation.part}"
            title = f"{where}: {row.tokens} tokens, {row.target_tokens} trained on"
            print_result(f"\n{title}\n{_format_row(job, row)}".removesuffix("\n"))
        if len(rows) < count:
            dropped = "".join(f"; {number} {reason}" for reason, number in sorted(reasons.items()))
            print_result(f"\ndata set {job.index} ({job.name}) gives {len(rows)} rows{dropped}")


def _encode_first_rows(
    job: DatasetJob, count: int, reasons: Counter[str]
) -> Iterator[tuple[EncodedConversation, TokenRow]]:
    """Encodes a data set until it is not read on; counts in `reasons` what is dropped."""
    step = min(BATCH, max(count, 10))
    for start in range(0, len(job.rows), step):
        shard, _ = encode_rows(job, start, min(start + step, len(job.rows)))
        reasons.update(dropped.reason for dropped in shard.dropped)
        yield from ((conversation, row) for conversation in shard.conversations for row in conversation.token_rows)


def _format_row(job: DatasetJob, token_row: TokenRow) -> str:
    row = json.loads(token_row.content)
    markers = make_marker(GREY), make_marker(GREEN, LEFT, RIGHT)
    reserved = "" if supports_colour() else LEFT + RIGHT
    segments = decode_segments(job.tokenizer, row["input_ids"], row["labels"])
    return "".join(markers[trained](format_visible(text, reserved)) for text, trained in segments)


def supports_colour() -> bool:
    """Tells whether stdout is a terminal that may show colours."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def make_marker(colour: str, left: str = "", right: str = "") -> Callable[[str], str]:
    """Makes a function that colours a text, line by line since pagers lose colours at a line's end, or brackets it."""
    if not supports_colour():
        return lambda text: f"{left}{text}{right}"
    return lambda text: "\n".join(f"\x1b[{colour}m{line}\x1b[0m" if line else line for line in text.split("\n"))


def format_visible(text: str, reserved: str = "") -> str:
    """Makes line ends, tabs and easily overlooked blanks visible; escapes unprintable and `reserved` characters."""
    text = BLANKS.sub(lambda match: "·" * len(match[0]), text)
    escapes = {"\n": "⏎\n", "\t": "→\t", **{character: ascii(character)[1:-1] for character in reserved}}
    return "".join(escapes.get(each) or (each if each.isprintable() else repr(each)[1:-1]) for each in text)
